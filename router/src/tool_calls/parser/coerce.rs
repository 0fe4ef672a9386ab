//! Values that a model writes as plain text, in the type that the tool's schema declares. Follows
//! `ResponseParser._coerce` of Transformers.

use serde_json::Value;

use super::json::escaped;

/// Types that a property's schema declares, in order.
pub fn types(schema: &Value) -> Vec<&str> {
    let mut types = Vec::new();
    match schema.get("type") {
        Some(Value::String(kind)) => types.push(kind.as_str()),
        Some(Value::Array(kinds)) => types.extend(kinds.iter().filter_map(Value::as_str)),
        _ => {}
    }
    for union in ["anyOf", "oneOf"] {
        if let Some(Value::Array(choices)) = schema.get(union) {
            for choice in choices {
                // Unions in unions add no type that matters here.
                types.extend(choice.get("type").and_then(Value::as_str));
            }
        }
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) && !types.contains(&"null") {
        types.push("null");
    }
    types
}

/// True if the text of a value of these types is a string, whatever it says.
pub fn is_text(types: &[&str]) -> bool {
    types.iter().all(|kind| *kind == "string")
}

/// JSON of `raw` in the first of `types` that it fits; a string if it fits none.
pub fn coerce(raw: &str, types: &[&str]) -> String {
    let fitting = types.iter().find_map(|kind| fit(raw, kind));
    fitting.unwrap_or_else(|| format!("\"{}\"", escaped(raw)))
}

fn fit(raw: &str, kind: &str) -> Option<String> {
    let trimmed = raw.trim();
    match kind {
        "integer" => integer(trimmed).or_else(|| {
            let number = float(trimmed)?;
            (number.fract() == 0.0).then(|| format!("{number:.0}"))
        }),
        "number" => {
            let number = float(trimmed)?;
            if number.fract() == 0.0 && !raw.contains('.') {
                return integer(trimmed).or_else(|| Some(format!("{number:.0}")));
            }
            serde_json::Number::from_f64(number).map(|number| number.to_string())
        }
        "boolean" => match trimmed.to_lowercase().as_str() {
            "true" | "1" => Some("true".into()),
            "false" | "0" => Some("false".into()),
            _ => None,
        },
        "null" => matches!(trimmed, "null" | "None").then(|| "null".into()),
        "object" | "array" => {
            let value: Value = serde_json::from_str(raw).ok()?;
            let fits = if kind == "object" {
                value.is_object()
            } else {
                value.is_array()
            };
            fits.then(|| trimmed.to_owned())
        }
        _ => None,
    }
}

/// A whole number as Python's `int` reads it, without leading zeros.
fn integer(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some(match digits {
        "" => "0".into(),
        digits => format!("{sign}{digits}"),
    })
}

/// A finite number as Python's `float` reads it.
fn float(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    number.is_finite().then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_get_the_declared_type() {
        for (schema, raw, expected) in [
            (json!({"type": "integer"}), " 7 ", "7"),
            (json!({"type": "integer"}), "3.0", "3"),
            (json!({"type": "integer"}), "3.5", "\"3.5\""),
            (
                json!({"type": "integer"}),
                "12345678901234567890123",
                "12345678901234567890123",
            ),
            (json!({"type": "number"}), "2", "2"),
            (json!({"type": "number"}), "2.50", "2.5"),
            (json!({"type": "number"}), "nan", "\"nan\""),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "boolean"}), "yes", "\"yes\""),
            (json!({"type": ["string", "null"]}), "None", "null"),
            (json!({"type": "string"}), "12", "\"12\""),
            (json!({}), "12", "\"12\""),
            (json!({"type": "object"}), "{\"a\": [1]}", "{\"a\": [1]}"),
            (
                json!({"type": "array"}),
                "{\"a\": [1]}",
                "\"{\\\"a\\\": [1]}\"",
            ),
            (
                json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
                "null",
                "null",
            ),
            (json!({"type": "integer", "nullable": true}), "None", "null"),
        ] {
            assert_eq!(coerce(raw, &types(&schema)), expected, "{schema} {raw}");
        }
    }
}
