//! Random schemas, patterns and spellings: they are compiled or refused, and what follows an accepted one is valid.
//! `PROPTEST_CASES` sets how many are tried.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::spelling;
use super::texts::{Judge, Question, Verdict};

fn judge() -> &'static Judge {
    static JUDGE: OnceLock<Judge> = OnceLock::new();
    JUDGE.get_or_init(|| Judge::new().expect("a judge"))
}

const KEYWORDS: [&str; 34] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "$defs",
    "definitions",
    "format",
    "pattern",
    "not",
    "if",
    "$schema",
    "$id",
    "x-guidance",
    "default",
];

const WORDS: [&str; 22] = [
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "a",
    "b",
    "#",
    "#/$defs/a",
    "#/properties/a",
    "date",
    "time",
    "email",
    "^a+$",
    "(",
    "[a-z]{2}",
    "(a|b)*",
    "http://json-schema.org/draft-07/schema#",
    "text",
    "regex",
];

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-5_i64..9).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(&[0.1, 0.5, 1e300, -1e-300, 9_007_199_254_740_993.0][..])
            .prop_map(Value::from),
    ]
}

/// JSON made of a schema's keywords.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => prop::sample::select(&WORDS[..]).prop_map(Value::from),
        2 => number(),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        let keyword = prop::sample::select(&KEYWORDS[..]);
        let name = prop::sample::select(&["a", "b", "^a", "^b"][..]);
        let object = |fields: Vec<(&str, Value)>| {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            Value::Object(fields.collect::<Map<_, _>>())
        };
        prop_oneof![
            4 => prop::collection::vec((keyword, inner.clone()), 0..5).prop_map(object),
            2 => prop::collection::vec((name, inner.clone()), 0..3).prop_map(object),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
}

fn verdict(schema: &Value, texts: &[String]) -> Result<Verdict, TestCaseError> {
    let question = Question {
        schema: schema.clone(),
        texts: texts.to_vec(),
    };
    judge()
        .judge(&question)
        .map_err(|error| TestCaseError::fail(format!("{schema}: {error}")))
}

proptest! {
    #[test]
    fn random_schemas_are_compiled_or_refused(schema in schema(), data in schema()) {
        let texts = [data.to_string(), "{".to_owned(), "\u{0}".to_owned()];
        match verdict(&schema, &texts)? {
            Verdict::Refused { field, reason } => {
                prop_assert!(field.starts_with("schema"), "{}: {}", schema, field);
                prop_assert!(!reason.is_empty() && reason.len() < 1000, "{}: {}", schema, reason);
            }
            Verdict::Accepted(accepted) => prop_assert_eq!(&accepted[1..], &[false, false]),
        }
    }

    #[test]
    fn a_constant_allows_itself_alone(data in schema(), other in schema()) {
        let schema = json!({"const": data});
        if let Verdict::Accepted(accepted) = verdict(&schema, &[data.to_string(), other.to_string()])? {
            let numbers_differ = data.to_string().contains(['e', '.']);
            prop_assert!(accepted[0] || numbers_differ, "{}", schema);
            prop_assert!(!accepted[1] || data == other || numbers_differ, "{}: {}", schema, other);
        }
    }

    #[test]
    fn random_spellings_are_read_or_refused(
        field in prop::sample::select(&[
            "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "json_schema", "regex", "ebnf", "structural_tag", "grammar", "format",
        ][..]),
        value in schema(),
        text in r#"[a-z:=|"()\[\]{}*+?\\<>#/., \n-]{0,40}"#,
    ) {
        for value in [value, Value::from(text)] {
            if let Err(error) = spelling::read([(field, Some(&value))]) {
                prop_assert!(error.field.is_some_and(|named| named.starts_with(field)), "{}: {}", field, value);
            }
        }
    }

    #[test]
    fn random_patterns_are_compiled_or_refused(pattern in r#"[ab.^$|()\[\]{}0-9,*+?\\pdwsu-]{0,24}"#) {
        let schema = json!({"type": "string", "pattern": pattern});
        verdict(&schema, &["\"a\"".to_owned()])?;
    }
}
