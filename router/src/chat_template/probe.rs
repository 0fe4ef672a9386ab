//! Finds out which forms of messages a template understands, by giving them to it.

use std::time::Duration;

use serde_json::{Value, json};

use super::adapt::{ArgumentsForm, ContentForm, Forms, NullForm};
use super::jinja::{Error, Kind, Limits};

const PROBE: &str = "probe-7c0e51";
const NAME: &str = "probe_7c0e51";

/// Limits of one try: a template that needs more for a conversation of two lines is at fault.
pub fn limits() -> Limits {
    Limits {
        steps: 2_000_000,
        memory_bytes: 32 << 20,
        output_bytes: 4 << 20,
        time: Duration::from_secs(2),
    }
}

/// The forms that `source` understands; `render` gives its text for messages.
///
/// # Errors
/// Fails when the template goes beyond its limits.
pub fn forms(
    source: &str,
    render: impl Fn(&Value) -> Result<String, Error>,
) -> Result<Forms, Error> {
    let attempt = |messages: Value| match render(&messages) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind == Kind::Limit => Err(error),
        Err(_) => Ok(None),
    };
    let content = content_form(&attempt)?;
    let user = match content {
        ContentForm::Parts => json!([{"type": "text", "text": PROBE}]),
        _ => json!(PROBE),
    };
    let empty = match content {
        ContentForm::Parts => json!([]),
        _ => json!(""),
    };
    let calls = json!([call(json!({"a": 1}))]);
    let with_calls = |content: &Value| {
        json!([
            {"role": "user", "content": user},
            {"role": "assistant", "content": content, "tool_calls": calls},
        ])
    };
    let alone = |content: &Value| {
        json!([
            {"role": "user", "content": user},
            {"role": "assistant", "content": content},
            {"role": "user", "content": user},
        ])
    };
    let null = |messages: &dyn Fn(&Value) -> Value| {
        let with_null = attempt(messages(&Value::Null))?;
        let with_empty = attempt(messages(&empty))?;
        Ok::<_, Error>(null_form(with_null.as_deref(), with_empty.as_deref()))
    };
    let null_with_calls = null(&with_calls)?;
    let null_alone = null(&alone)?;
    let told = match null_with_calls {
        NullForm::None => Value::Null,
        NullForm::Empty => empty.clone(),
    };
    let with_arguments = |arguments: Value| {
        json!([
            {"role": "user", "content": user},
            {"role": "assistant", "content": told, "tool_calls": [call(arguments)]},
        ])
    };
    let takes_object = attempt(with_arguments(json!({"a": 1})))?.is_some();
    let takes_text = || attempt(with_arguments(json!("{\"a\": 1}")));
    let arguments = if takes_object || takes_text()?.is_none() {
        ArgumentsForm::Object
    } else {
        ArgumentsForm::Text
    };
    Ok(Forms {
        content,
        null_with_calls,
        null_alone,
        arguments,
        knows_developer: source.contains("developer"),
    })
}

fn call(arguments: Value) -> Value {
    // Some templates want identifiers of nine letters and digits.
    json!({"id": "a1b2c3d4e", "type": "function", "function": {"name": NAME, "arguments": arguments}})
}

fn content_form(
    attempt: &impl Fn(Value) -> Result<Option<String>, Error>,
) -> Result<ContentForm, Error> {
    let shown = |content: Value| {
        let text = attempt(json!([{"role": "user", "content": content}]))?;
        // A list that was merely printed shows the name of its field too.
        Ok::<_, Error>(text.is_some_and(|text| {
            text.contains(PROBE) && !text.contains("'text'") && !text.contains("\"text\"")
        }))
    };
    let parts = shown(json!([{"type": "text", "text": PROBE}]))?;
    Ok(match (shown(json!(PROBE))?, parts) {
        (true, true) => ContentForm::Either,
        (false, true) => ContentForm::Parts,
        _ => ContentForm::Text,
    })
}

/// `none` is right for a template that asks for it: one that fails with it or prints its name does not.
fn null_form(with_null: Option<&str>, with_empty: Option<&str>) -> NullForm {
    let nones = |text: &str| {
        text.matches("None").count() + text.matches("none").count() + text.matches("null").count()
    };
    match (with_null, with_empty) {
        (Some(null), Some(empty)) if nones(null) > nones(empty) => NullForm::Empty,
        (Some(_), _) => NullForm::None,
        (None, _) => NullForm::Empty,
    }
}
