//! Reads fields of items, with errors that name their path.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The text in `field` of the object at `path`.
pub fn text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<&'a str, ApiError> {
    optional_text(object, path, field)?.ok_or_else(|| {
        let field = format!("{path}.{field}");
        ApiError::validation(&field, format!("`{field}` is missing"))
    })
}

/// The text in `field`, when there is one.
pub fn optional_text<'a>(
    object: &'a Map<String, Value>,
    path: &str,
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(expected(&format!("{path}.{field}"), "a string")),
    }
}

/// Error of a field that is of another type. `kind`: the type that it must have.
pub fn expected(path: &str, kind: &str) -> ApiError {
    ApiError::validation(path, format!("`{path}` must be {kind}"))
}

/// Text of a content: a text, or a list of parts that are text. Parts are joined by line breaks.
pub fn content(value: Option<&Value>, path: &str) -> Result<String, ApiError> {
    let parts = match value {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        _ => return Err(expected(path, "a string or an array of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        texts.push(part_text(part, &format!("{path}[{index}]"))?);
    }
    Ok(texts.join("\n"))
}

fn part_text<'a>(part: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    let part = part
        .as_object()
        .ok_or_else(|| expected(path, "an object"))?;
    match text(part, path, "type")? {
        "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
            text(part, path, "text")
        }
        "refusal" => text(part, path, "refusal"),
        kind => {
            let field = format!("{path}.type");
            let message = format!(
                "`{field}`: parts of type {kind:?} are not supported by this version; only text is"
            );
            Err(ApiError::validation(&field, message))
        }
    }
}
