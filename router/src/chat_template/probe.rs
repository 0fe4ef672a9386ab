//! Finds out which forms of messages a template understands, by rendering them.

use std::time::Duration;

use serde_json::{Value, json};

use super::adapt::{ArgumentsForm, ContentForm, Forms, NullForm};
use super::jinja::{Error, Kind, Limits};

const PROBE: &str = "probe-7c0e51";
const NAME: &str = "probe_7c0e51";

/// Limits of one try. A template that needs more for a conversation of two lines is faulty.
pub fn limits() -> Limits {
    Limits {
        steps: 500_000,
        memory_bytes: 32 << 20,
        output_bytes: 4 << 20,
        time: Duration::from_secs(5),
    }
}

/// Finds the forms that `source` understands. `render` renders it with messages.
///
/// # Errors
/// Fails when the template exceeds its limits.
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
    let with_call = |content: &Value, arguments: Value| {
        json!([
            {"role": "user", "content": user},
            {"role": "assistant", "content": content, "tool_calls": [call(arguments)]},
        ])
    };
    let object = json!({"a": 1});
    let text = json!("{\"a\": 1}");
    let with_any_call = |content: &Value| {
        let with_object = attempt(with_call(content, object.clone()))?;
        match with_object {
            None => attempt(with_call(content, text.clone())),
            found => Ok(found),
        }
    };
    let alone = |content: &Value| {
        attempt(json!([
            {"role": "user", "content": user},
            {"role": "assistant", "content": content},
            {"role": "user", "content": user},
        ]))
    };
    let null_with_calls = null_form(with_any_call(&Value::Null)?, with_any_call(&empty)?);
    let null_alone = null_form(alone(&Value::Null)?, alone(&empty)?);
    let told = match null_with_calls {
        NullForm::None => Value::Null,
        NullForm::Empty => empty.clone(),
    };
    let takes = |arguments: &Value| {
        let shown = attempt(with_call(&told, arguments.clone()))?;
        Ok::<_, Error>(shown.is_some())
    };
    let arguments = if !takes(&object)? && takes(&text)? {
        ArgumentsForm::Text
    } else {
        ArgumentsForm::Object
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
    // Some templates require identifiers of nine letters and digits.
    json!({"id": "a1b2c3d4e", "type": "function", "function": {"name": NAME, "arguments": arguments}})
}

fn content_form(
    attempt: &impl Fn(Value) -> Result<Option<String>, Error>,
) -> Result<ContentForm, Error> {
    let shown = |content: Value| {
        let text = attempt(json!([{"role": "user", "content": content}]))?;
        // The text of a list that was printed contains the name of its field.
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

/// True if `none` is right for the template. It is wrong if the template fails with it, prints its name or drops the
/// calls.
fn null_form(with_null: Option<String>, with_empty: Option<String>) -> NullForm {
    let nones = |text: &str| {
        let names = ["None", "none", "null"];
        names
            .map(|name| text.matches(name).count())
            .iter()
            .sum::<usize>()
    };
    match (with_null, with_empty) {
        (None, _) => NullForm::Empty,
        (Some(_), None) => NullForm::None,
        (Some(null), Some(empty)) => {
            let hides_call = empty.contains(NAME) && !null.contains(NAME);
            if hides_call || nones(&null) > nones(&empty) {
                NullForm::Empty
            } else {
                NullForm::None
            }
        }
    }
}
