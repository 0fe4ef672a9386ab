//! Lines in a system text that differ in every request and mean nothing to the model. They stand at the beginning of the
//! prompt, where no cached prefix would ever match them.

/// Beginning of the line that Claude Code puts before its instructions, for the billing of Anthropic's own service.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// `text` without a billing header in its first line.
pub fn without_billing_header(text: &str) -> &str {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if is_billing_header(first) {
        rest.trim_start_matches(['\r', '\n'])
    } else {
        text
    }
}

/// True for a line that names the header, or that consists of fields `name=value;` with the nonce `cch` among them.
fn is_billing_header(line: &str) -> bool {
    let line = line.trim();
    if line
        .get(..BILLING_HEADER.len())
        .is_some_and(|begin| begin.eq_ignore_ascii_case(BILLING_HEADER))
    {
        return true;
    }
    let mut fields = line.trim_end_matches(';').split(';').map(str::trim);
    let is_field = |field: &str| {
        let (name, value) = field.split_once('=').unwrap_or_default();
        !name.is_empty() && !value.is_empty() && !field.contains(char::is_whitespace)
    };
    line.ends_with(';')
        && fields.clone().all(is_field)
        && fields.any(|field| field.starts_with("cch="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_billing_header_is_left_out() {
        for (text, expected) in [
            (
                "x-anthropic-billing-header: cc_version=2.1.328.a1b; cc_entrypoint=cli; cch=0f1e2;",
                "",
            ),
            (
                "X-Anthropic-Billing-Header: cch=1;\n\nYou are kind.",
                "You are kind.",
            ),
            ("cch=0f1e2;\r\nYou are kind.", "You are kind."),
            ("cc_version=2.1; cch=0f1e2;\nYou are kind.", "You are kind."),
        ] {
            assert_eq!(without_billing_header(text), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_stay_whole() {
        for text in [
            "",
            "You are kind.",
            "You are kind.\nx-anthropic-billing-header: cch=1;",
            "cch=1",
            "Explain what cch=1; means",
            "a=b;\nYou are kind.",
            "naïve = x;",
        ] {
            assert_eq!(without_billing_header(text), text);
        }
    }
}
