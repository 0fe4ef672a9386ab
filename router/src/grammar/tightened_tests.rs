use super::*;
use crate::grammar::texts::{Judge, Question, Verdict};

fn verdict(schema: Value, texts: &[&str]) -> Verdict {
    let judge = Judge::new().unwrap();
    let texts = texts.iter().map(|&text| text.to_owned()).collect();
    judge.judge(&Question { schema, texts }).unwrap()
}

/// The keyword at whose place a schema is refused.
fn refused_at(schema: Value) -> String {
    match verdict(schema.clone(), &[]) {
        Verdict::Refused { field, .. } => field.rsplit('.').next().unwrap_or_default().to_owned(),
        Verdict::Accepted(_) => panic!("{schema} is accepted"),
    }
}

#[test]
fn days_and_times_exist() {
    let accepted = |format: &str, texts: &[&str]| {
        let schema = json!({"type": "string", "format": format});
        let texts: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        verdict(schema, &texts)
    };
    assert_eq!(
        accepted(
            "date",
            &[
                "2000-02-29",
                "2024-02-29",
                "1900-02-29",
                "2023-02-29",
                "2023-04-31"
            ]
        ),
        Verdict::Accepted(vec![true, true, false, false, false])
    );
    assert_eq!(
        accepted(
            "time",
            &[
                "23:59:60Z",
                "23:59:59.5-08:00",
                "12:00:60Z",
                "23:59:60+01:00"
            ]
        ),
        Verdict::Accepted(vec![true, true, false, false])
    );
    assert_eq!(
        accepted(
            "date-time",
            &["2024-02-29T23:59:60Z", "2023-02-29T00:00:00Z"]
        ),
        Verdict::Accepted(vec![true, false])
    );
}

#[test]
fn a_format_counts_beside_a_pattern() {
    let schema = json!({"properties": {"format": {"type": "string", "format": "date", "pattern": "^2"}},
                        "required": ["format"], "type": "object", "additionalProperties": false});
    let texts = [
        r#"{"format":"2024-01-31"}"#,
        r#"{"format":"1024-01-31"}"#,
        r#"{"format":"2023-02-29"}"#,
    ];
    assert_eq!(
        verdict(schema, &texts),
        Verdict::Accepted(vec![true, false, false])
    );
}

#[test]
fn escapes_do_not_hide_the_name_of_a_property() {
    for names in [
        json!({"properties": {"a": {"type": "integer"}}}),
        json!({"patternProperties": {"^a": {"type": "integer"}}}),
        json!({"anyOf": [{"properties": {"a": {"type": "integer"}}}, {"type": "integer"}]}),
    ] {
        let mut schema = names;
        schema["type"] = json!("object");
        let texts = [r#"{"a":1}"#, r#"{"b":"x"}"#, r#"{"\u0061":"x"}"#];
        assert_eq!(
            verdict(schema.clone(), &texts),
            Verdict::Accepted(vec![true, true, false]),
            "{schema}"
        );
    }
    let closed = json!({"properties": {"a": {"type": "string"}}, "additionalProperties": false, "type": "object"});
    assert!(!leaves_keys_free(&closed));
    assert_eq!(
        verdict(closed, &[r#"{"a":"\u0001"}"#]),
        Verdict::Accepted(vec![true])
    );
}

#[test]
fn patterns_have_the_meaning_of_javascript() {
    let verdict = |pattern: &str, texts: &[&str]| {
        verdict(json!({"type": "string", "pattern": pattern}), texts)
    };
    assert_eq!(
        verdict("^.$", &["\"é\"", r#""\r""#, r#""\n""#]),
        Verdict::Accepted(vec![true, false, false])
    );
    assert_eq!(
        verdict(r"^\S$", &["\"a\"", "\"\u{feff}\"", "\" \""]),
        Verdict::Accepted(vec![true, false, false])
    );
    assert_eq!(
        verdict("^[a&&b]$", &["\"a\"", "\"&\"", "\"c\""]),
        Verdict::Accepted(vec![true, true, false])
    );
}

#[test]
fn control_characters_are_written_or_refused() {
    let text = "a\u{1}b";
    let texts = [r#"{"x":"a\u0001b"}"#, r#"{"x":"ab"}"#];
    let mut schema =
        json!({"type": "object", "properties": {"x": {"const": text}}, "required": ["x"]});
    assert_eq!(refused_at(schema.clone()), "const");
    schema["additionalProperties"] = json!(false);
    assert_eq!(
        verdict(schema, &texts),
        Verdict::Accepted(vec![true, false])
    );
}

#[test]
fn numbers_that_doubles_cannot_hold_are_refused() {
    let large = 9_007_199_254_740_993_u64;
    for (keyword, value) in [
        ("minimum", json!(large)),
        ("minimum", json!(1e19)),
        ("maximum", json!(large)),
        ("maximum", json!(-1e19)),
        ("exclusiveMinimum", json!(large - 1)),
        ("exclusiveMaximum", json!(i64::MAX)),
        ("const", json!(large)),
        ("enum", json!([1, [{"a": large}]])),
    ] {
        let schema = json!({"items": {"type": "integer", keyword: value}});
        assert_eq!(refused_at(schema), keyword, "{value}");
    }
    let widest = json!({"type": "integer", "maximum": i64::MAX, "minimum": 0});
    assert_eq!(
        verdict(widest, &["9223372036854775807", "9223372036854775808"]),
        Verdict::Accepted(vec![true, false])
    );
}

#[test]
fn a_multiple_of_several_numbers_is_computed_or_refused() {
    let multiples = |first: f64, second: f64| json!({"type": "integer", "allOf": [{"multipleOf": first}, {"multipleOf": second}]});
    assert_eq!(
        verdict(multiples(4.0, 6.0), &["12", "4", "6", "24"]),
        Verdict::Accepted(vec![true, false, false, true])
    );
    let Verdict::Refused { reason, .. } = verdict(multiples(65536.0, 65537.0), &[]) else {
        panic!("it is accepted");
    };
    assert!(reason.contains("multipleOf"), "{reason}");
}

#[test]
fn a_minimum_of_free_keys_is_refused() {
    assert_eq!(
        refused_at(json!({"type": "object", "minProperties": 2})),
        "minProperties"
    );
    let one_more = json!({"type": "object", "required": ["a"], "minProperties": 2});
    assert_eq!(
        verdict(
            one_more,
            &[r#"{"a":1,"b":2}"#, r#"{"a":1}"#, r#"{"a":1,"a":2}"#]
        ),
        Verdict::Accepted(vec![true, false, false])
    );
}

#[test]
fn early_drafts_are_refused() {
    let early = json!({"$schema": "http://json-schema.org/draft-03/schema#", "extends": {"type": "string"}});
    assert_eq!(refused_at(early), "$schema");
    let named = json!({"properties": {"$schema": {"type": "string"}}});
    assert!(matches!(verdict(named, &[]), Verdict::Accepted(_)));
}

#[test]
fn data_is_no_schema() {
    let schema = json!({"default": {"minimum": 1e300}, "properties": {"enum": {"type": "string", "format": "date"}}});
    assert_eq!(check(&schema), Ok(()));
    let tightened = tightened(schema);
    assert!(tightened["properties"]["enum"]["pattern"].is_string());
}
