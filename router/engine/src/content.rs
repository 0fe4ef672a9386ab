//! Texts of requests in spans, where the operator asks for them: messages as OpenTelemetry's conventions for generative AI
//! have them.

use serde_json::json;

/// Maximum size of a text in a span, bytes.
const MAX_BYTES: usize = 64 * 1024;

/// A text that is written down as it grows, up to a size that a span can hold.
#[derive(Debug, Default)]
pub(crate) struct Content(String);

impl Content {
    pub fn push(&mut self, text: &str) {
        let room = MAX_BYTES - self.0.len();
        self.0.push_str(cut(text, room));
    }

    /// The message of the model, which ended for `reason`.
    pub fn answer(&self, reason: &str) -> String {
        let parts = json!([{"type": "text", "content": self.0}]);
        json!([{"role": "assistant", "parts": parts, "finish_reason": reason}]).to_string()
    }
}

/// The message of a prompt, cut to a size that a span can hold.
pub fn prompt_message(prompt: &str) -> String {
    let parts = json!([{"type": "text", "content": cut(prompt, MAX_BYTES)}]);
    json!([{"role": "user", "parts": parts}]).to_string()
}

/// The beginning of `text`, of at most `max_bytes` and whole characters.
fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_form_of_the_conventions() {
        let mut content = Content::default();
        content.push("a \"");
        content.push("b");
        assert_eq!(
            content.answer("stop"),
            r#"[{"role":"assistant","parts":[{"type":"text","content":"a \"b"}],"finish_reason":"stop"}]"#
        );
        assert_eq!(
            prompt_message("hi"),
            r#"[{"role":"user","parts":[{"type":"text","content":"hi"}]}]"#
        );
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut content = Content::default();
        content.push(&"a".repeat(MAX_BYTES - 1));
        content.push("é");
        content.push("b");
        assert_eq!(content.0.len(), MAX_BYTES);
        assert!(content.0.ends_with("ab"));
        assert!(prompt_message(&"é".repeat(MAX_BYTES)).len() < MAX_BYTES + 100);
    }
}
