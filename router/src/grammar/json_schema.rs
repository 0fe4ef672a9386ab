//! JSON schemas in the form that is compiled: an object, with the whitespace that an answer may have.

use serde_json::{Map, Value, json};

use super::tightened::{OPTIONS, leaves_keys_free, tightened};

/// Whitespace between the parts of a JSON document: a space, or a line break with an indentation. Bounded, because a
/// model that may write any number of spaces can go on for ever.
const WHITESPACE: &str = r" |\r?\n[ \t]{0,64}";

/// Options under which the library enforces less than the schema says.
const WEAKENING: [&str; 2] = ["lenient", "coerce_one_of"];

/// Option of the library: the letters that may follow a backslash in a string.
const ESCAPES: &str = "json_allowed_escapes";

/// The letters of escapes without `u`. Control characters that have no short escape cannot be written then.
const SHORT_ESCAPES: &str = "nrbtf\\\"";

/// The schema as an object with options, made exact.
pub fn prepared(schema: &Value) -> Value {
    let keys_are_free = leaves_keys_free(schema);
    let mut object = match tightened(schema.clone()) {
        Value::Object(object) => object,
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    let options = object
        .entry(OPTIONS)
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(options) = options
        && options.get("whitespace_flexible") != Some(&Value::Bool(false))
    {
        options
            .entry("whitespace_pattern")
            .or_insert_with(|| WHITESPACE.into());
    }
    if keys_are_free && let Some(Value::Object(options)) = object.get_mut(OPTIONS) {
        options.insert(ESCAPES.to_owned(), SHORT_ESCAPES.into());
    }
    Value::Object(object)
}

/// A schema with an option of the library.
pub fn with_option(schema: Value, option: &str, value: Value) -> Value {
    let mut prepared = prepared(&schema);
    if let Some(options) = prepared.get_mut(OPTIONS).and_then(Value::as_object_mut) {
        if option == "whitespace_flexible" {
            options.remove("whitespace_pattern");
        }
        options.insert(option.to_owned(), value);
    }
    prepared
}

/// Refuses what is no schema, and options that would weaken it. The error is the reason.
pub fn check_options(schema: &Value) -> Result<(), String> {
    let options = match schema {
        Value::Object(object) => object.get(OPTIONS),
        Value::Bool(_) => None,
        _ => return Err("a JSON schema is an object or a boolean".to_owned()),
    };
    let weakens = |name: &&&str| {
        let value = options.and_then(|options| options.get(**name));
        value.is_some_and(|value| value != &Value::Bool(false))
    };
    match WEAKENING.iter().find(weakens) {
        Some(name) => Err(format!(
            "`{OPTIONS}.{name}` would weaken the schema; leave it out"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_becomes_an_object_with_bounded_whitespace() {
        for schema in [
            json!({"type": "object"}),
            json!(true),
            json!({"x-guidance": {}}),
        ] {
            assert_eq!(
                prepared(&schema)[OPTIONS]["whitespace_pattern"],
                WHITESPACE,
                "{schema}"
            );
        }
        let dense = with_option(json!({}), "whitespace_flexible", json!(false));
        assert_eq!(prepared(&dense), dense);
        assert_eq!(dense, json!({"x-guidance": {"whitespace_flexible": false}}));
    }

    #[test]
    fn options_that_weaken_are_refused() {
        for options in [json!({"lenient": true}), json!({"coerce_one_of": 1})] {
            assert!(
                check_options(&json!({"x-guidance": options})).is_err(),
                "{options}"
            );
        }
        check_options(&json!({"x-guidance": {"lenient": false}})).unwrap();
        check_options(&json!(false)).unwrap();
        assert!(check_options(&json!("{}")).is_err());
    }
}
