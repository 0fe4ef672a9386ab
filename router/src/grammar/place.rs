//! Finds the place in a JSON schema that is refused.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// Time for the search. Beyond it, the place that was found so far is named.
const MAX_TIME: Duration = Duration::from_millis(150);

/// Keywords whose value is a schema.
const OF_SCHEMA: [&str; 12] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const OF_LIST: [&str; 5] = ["prefixItems", "anyOf", "oneOf", "allOf", "items"];
/// Keywords whose value is an object of schemas.
const OF_MAP: [&str; 5] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "$defs",
    "definitions",
];

/// Path of the smallest part of `schema` that is refused by itself, such as `.properties.age`, and the reason. `refused`
/// gives the reason for which a schema is refused.
pub fn find(
    schema: &Value,
    refused: impl Fn(&Value) -> Option<String>,
) -> Option<(String, String)> {
    let deadline = Instant::now() + MAX_TIME;
    let mut found = (String::new(), refused(schema)?);
    let mut inside = schema;
    'deeper: loop {
        for (path, part) in children(inside) {
            if Instant::now() > deadline {
                return Some(found);
            }
            // A reference that is wrong only because the part stands alone has another reason.
            if let Some(reason) = refused(&alone(part, schema))
                && is_same(&reason, &found.1)
            {
                found = (format!("{}{path}", found.0), reason);
                inside = part;
                continue 'deeper;
            }
        }
        return Some(found);
    }
}

/// True if both reasons are the same. The part alone may name its own keys only.
fn is_same(reason: &str, other: &str) -> bool {
    let kind = |text: &str| text.split([':', '\'', '`']).next().map(str::to_owned);
    reason == other || kind(reason) == kind(other)
}

/// The parts of a schema, with their paths.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let Value::Object(object) = schema else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in object {
        match value {
            Value::Array(list) if OF_LIST.contains(&key.as_str()) => {
                let numbered = list.iter().enumerate();
                found.extend(numbered.map(|(i, part)| (format!(".{key}[{i}]"), part)));
            }
            Value::Object(map) if OF_MAP.contains(&key.as_str()) => {
                found.extend(
                    map.iter()
                        .map(|(name, part)| (format!(".{key}.{name}"), part)),
                );
            }
            Value::Object(_) | Value::Bool(_) if OF_SCHEMA.contains(&key.as_str()) => {
                found.push((format!(".{key}"), value));
            }
            _ => {}
        }
    }
    found
}

/// A part of a schema with the definitions of the whole, so that it can be judged by itself.
fn alone(part: &Value, whole: &Value) -> Value {
    let mut object = match part {
        Value::Object(object) => object.clone(),
        other => Map::from_iter([("allOf".to_owned(), Value::from(vec![other.clone()]))]),
    };
    for key in ["$defs", "definitions", "$schema"] {
        if let Some(value) = whole.get(key) {
            object.entry(key).or_insert_with(|| value.clone());
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_smallest_refused_part_is_named() {
        let refused = |schema: &Value| {
            let text = schema.to_string();
            text.contains("\"zipcode\"")
                .then(|| "Unknown format: zipcode".to_owned())
        };
        let schema = json!({
            "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "string", "format": "zipcode"}}}},
            "properties": {"name": {"type": "string"}},
        });
        assert_eq!(
            find(&schema, refused).unwrap().0,
            ".$defs.place.properties.zip"
        );
        let listed = json!({"items": [{"type": "string"}, {"anyOf": [{}, {"format": "zipcode"}]}]});
        assert_eq!(find(&listed, refused).unwrap().0, ".items[1].anyOf[1]");
        assert_eq!(find(&json!({"type": "string"}), refused), None);
    }
}
