//! The Jinja environment of chat templates, set up as Transformers sets up its own.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::python_json;

/// Name of the one template in the environment.
pub const TEMPLATE: &str = "chat_template";

/// Compiles `source`.
pub fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned(TEMPLATE, without_generation_tags(source))?;
    Ok(environment)
}

/// `{% generation %}` marks what the assistant says for training; here it is a block that is always rendered. The
/// dashes that trim white space stay where they are.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[..end];
        let replacement = match inner.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c))
        {
            "generation" => Some(inner.replace("generation", "if true")),
            "endgeneration" => Some(inner.replace("endgeneration", "endif")),
            _ => None,
        };
        result.push_str(replacement.as_deref().unwrap_or(inner));
        rest = &tag[end..];
    }
    result.push_str(rest);
    result
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)` of Transformers: nothing is escaped
/// for HTML, and keys keep their order.
fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let argument = |positional: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional {
            Some(value) => Some(value),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let separators = match argument(separators, "separators")? {
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|item| item.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(pair).map_err(|_| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    "tojson: `separators` must be a pair",
                )
            })?;
            Some((item, key))
        }
        None => None,
    };
    let options = python_json::Options {
        ensure_ascii: argument(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true()),
        indent: argument(indent, "indent")?
            .map(usize::try_from)
            .transpose()?,
        separators,
        sort_keys: argument(None, "sort_keys")?.is_some_and(|value| value.is_true()),
    };
    named.assert_all_used()?;
    let json_error = |error| {
        Error::new(
            ErrorKind::BadSerialization,
            "tojson: not expressible as JSON",
        )
        .with_source(error)
    };
    let json = serde_json::to_value(value).map_err(json_error)?;
    python_json::dumps(&json, options)
        .map(Value::from)
        .map_err(json_error)
}

/// `datetime.now().strftime(format)`: local time, C locale.
fn strftime_now(format: String) -> Result<String, Error> {
    let invalid = || {
        Error::new(
            ErrorKind::InvalidOperation,
            "strftime_now: the format is not usable",
        )
    };
    if format.is_empty() {
        return Ok(String::new());
    }
    let format = std::ffi::CString::new(format).map_err(|_| invalid())?;
    let mut buffer = [0u8; 256];
    // SAFETY: `time` and `broken_down` live on this stack, `format` ends with a zero byte, and strftime writes at most
    // `buffer.len()` bytes and says how many.
    let length = unsafe {
        let time = libc::time(std::ptr::null_mut());
        let mut broken_down: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&time, &mut broken_down).is_null() {
            return Err(invalid());
        }
        libc::strftime(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format.as_ptr(),
            &broken_down,
        )
    };
    if length == 0 {
        return Err(invalid());
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let environment = compile(source)?;
        environment.get_template(TEMPLATE)?.render(context! {
            tool => Value::from(minijinja::value::Serde(serde_json::json!({"z": 1, "a": "<é>"}))),
            items => vec![1, 2, 3],
        })
    }

    #[test]
    fn generation_tags_render_their_body() {
        assert_eq!(
            render("a {%- generation -%} b {%- endgeneration %}\nc").unwrap(),
            "abc"
        );
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        assert_eq!(
            render("  {% if true %}\nx\n  {% endif %}\ny\n").unwrap(),
            "x\ny"
        );
    }

    #[test]
    fn tojson_keeps_order_and_escapes_nothing_for_html() {
        assert_eq!(
            render("{{ tool | tojson }}").unwrap(),
            r#"{"z": 1, "a": "<é>"}"#
        );
        assert_eq!(
            render("{{ tool | tojson(indent=1, ensure_ascii=true, sort_keys=true) }}").unwrap(),
            "{\n \"a\": \"<\\u00e9>\",\n \"z\": 1\n}"
        );
        assert_eq!(
            render("{{ tool | tojson(separators=(',', ':')) }}").unwrap(),
            r#"{"z":1,"a":"<é>"}"#
        );
    }

    #[test]
    fn python_idioms_work() {
        assert_eq!(render("{{ items[::-1] | join }}").unwrap(), "321");
        assert_eq!(render("{{ ' a b '.strip().split(' ')[-1] }}").unwrap(), "b");
        assert_eq!(
            render("{% for k, v in tool.items() %}{{ k }}{% if v == 1 %}{% continue %}{% endif %}!{% endfor %}")
                .unwrap(),
            "za!"
        );
        assert_eq!(
            render("{% set ns = namespace(n=0) %}{% for i in items %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}")
                .unwrap(),
            "6"
        );
        assert_eq!(render("{{ none }} {{ true }}").unwrap(), "None True");
    }

    #[test]
    fn strftime_now_tells_the_year() {
        let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
        assert!(year > 2000);
    }
}
