use serde_json::{Value, json};

use super::*;
use crate::grammar::Rules;

fn reading(body: &Value) -> Read {
    let fields = SPELLINGS.iter().map(|(name, _)| (*name, body.get(*name)));
    read(fields)
}

fn grammar_of(body: Value) -> Grammar {
    reading(&body)
        .unwrap()
        .unwrap_or_else(|| panic!("{body} asks for nothing"))
}

fn only_rules(grammar: &Grammar) -> &Rules {
    assert_eq!(grammar.parts().len(), 1);
    &grammar.parts()[0].rules
}

#[test]
fn every_spelling_of_a_schema_gives_the_same_grammar() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let text = schema.to_string();
    for (body, field) in [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "value": schema}}),
            "response_format.value",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": schema}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_object", "value": schema}}),
            "response_format.value",
        ),
        (
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            "response_format.schema",
        ),
        (json!({"guided_json": schema}), "guided_json"),
        (json!({"guided_json": text}), "guided_json"),
        (
            json!({"structured_outputs": {"json": schema, "regex": null}}),
            "structured_outputs.json",
        ),
        (
            json!({"structured_outputs": {"json": text}}),
            "structured_outputs.json",
        ),
        (json!({"json_schema": text}), "json_schema"),
        (json!({"format": schema}), "format"),
        (
            json!({"grammar": {"type": "json", "value": schema}}),
            "grammar.value",
        ),
        (
            json!({"grammar": {"type": "json", "value": text}}),
            "grammar.value",
        ),
        (
            json!({"grammar": {"type": "json_object", "value": schema}}),
            "grammar.value",
        ),
        (
            json!({"grammar": {"type": "json_schema", "value": {"name": "x", "schema": schema}}}),
            "grammar.value.schema",
        ),
    ] {
        let grammar = grammar_of(body.clone());
        assert_eq!(
            only_rules(&grammar),
            &Rules::JsonSchema(schema.clone()),
            "{body}"
        );
        assert_eq!(grammar.field(), field, "{body}");
    }
}

#[test]
fn any_object_is_asked_for_in_three_ways() {
    for body in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"format": "json"}),
    ] {
        let object = Rules::JsonSchema(json!({"type": "object"}));
        assert_eq!(only_rules(&grammar_of(body.clone())), &object, "{body}");
    }
}

#[test]
fn every_spelling_of_other_grammars_gives_lark() {
    let digits = "start: /[0-9]\\/+/\n";
    for body in [
        json!({"guided_regex": "[0-9]/+"}),
        json!({"regex": "[0-9]/+"}),
        json!({"structured_outputs": {"regex": "[0-9]/+"}}),
        json!({"grammar": {"type": "regex", "value": "[0-9]/+"}}),
        json!({"response_format": {"type": "regex", "pattern": "[0-9]/+"}}),
    ] {
        assert_eq!(
            only_rules(&grammar_of(body)),
            &Rules::Lark(digits.to_owned())
        );
    }
    let choice = "start: \"yes\" | \"n\\\"o\"\n";
    for body in [
        json!({"guided_choice": ["yes", "n\"o"]}),
        json!({"structured_outputs": {"choice": ["yes", "n\"o"]}}),
        json!({"response_format": {"type": "choice", "value": ["yes", "n\"o"]}}),
    ] {
        assert_eq!(
            only_rules(&grammar_of(body)),
            &Rules::Lark(choice.to_owned())
        );
    }
    let ebnf = "start: R0_ROOT\nR0_ROOT: \"a\"\n";
    for (body, lark) in [
        (json!({"guided_grammar": "start: \"a\""}), "start: \"a\""),
        (
            json!({"structured_outputs": {"grammar": "start: \"a\""}}),
            "start: \"a\"",
        ),
        (json!({"ebnf": "root ::= \"a\""}), ebnf),
        (json!({"guided_grammar": "root ::= \"a\""}), ebnf),
        (json!({"grammar": "root ::= \"a\""}), ebnf),
        (
            json!({"response_format": {"type": "ebnf", "grammar": "root ::= \"a\""}}),
            ebnf,
        ),
    ] {
        assert_eq!(only_rules(&grammar_of(body)), &Rules::Lark(lark.to_owned()));
    }
}

#[test]
fn nothing_is_asked_for_by_neutral_values() {
    for body in [
        json!({}),
        json!({"response_format": null, "guided_json": null, "grammar": null}),
        json!({"response_format": {"type": "text"}}),
        json!({"structured_outputs": {"json": null, "json_object": false}}),
        json!({"structured_outputs": {}}),
        json!({"format": ""}),
    ] {
        assert_eq!(reading(&body), Ok(None), "{body}");
    }
}

#[test]
fn wrong_values_and_two_grammars_are_refused_by_name() {
    for (body, field) in [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {}}), "response_format"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "structural_tag"}}),
            "response_format",
        ),
        (json!({"guided_json": 3}), "guided_json"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_regex": 3}), "guided_regex"),
        (json!({"guided_regex": "a\\"}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": ["a", 1]}), "guided_choice[1]"),
        (json!({"ebnf": "a ::="}), "ebnf"),
        (json!({"grammar": {"type": "regex"}}), "grammar"),
        (json!({"grammar": {"type": "json"}}), "grammar"),
        (json!({"format": "yaml"}), "format"),
        (
            json!({"structured_outputs": {"yaml": 1}}),
            "structured_outputs",
        ),
        (json!({"structured_outputs": []}), "structured_outputs"),
        (
            json!({"structured_outputs": {"json_object": 3}}),
            "structured_outputs.json_object",
        ),
        (
            json!({"structured_outputs": {"json": {}, "disable_additional_properties": true}}),
            "structured_outputs.disable_additional_properties",
        ),
        (
            json!({"structured_outputs": {"json": {}, "regex": "a"}}),
            "structured_outputs.regex",
        ),
        (
            json!({"guided_json": {}, "guided_regex": "a"}),
            "guided_regex",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "regex": "a"}),
            "regex",
        ),
    ] {
        let error = reading(&body).unwrap_err();
        assert_eq!(
            error.field.as_deref(),
            Some(field),
            "{body}: {}",
            error.message
        );
        assert!(error.message.starts_with('`'), "{}", error.message);
    }
}

#[test]
fn whitespace_is_an_option_of_the_schema() {
    let options = |body: Value| {
        let grammar = grammar_of(body);
        let Rules::JsonSchema(schema) = only_rules(&grammar) else {
            panic!("a schema");
        };
        schema["x-guidance"].clone()
    };
    let pattern = json!({"structured_outputs": {"json": {}, "whitespace_pattern": "[ ]?"}});
    assert_eq!(options(pattern), json!({"whitespace_pattern": "[ ]?"}));
    let dense = json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true}});
    assert_eq!(options(dense), json!({"whitespace_flexible": false}));
}

#[test]
fn structural_tags_are_read_in_both_forms() {
    let schema = json!({"type": "object"});
    let old = json!({"structural_tag": {
        "structures": [{"begin": "<function=f>", "schema": schema, "end": "</function>"}], "triggers": ["<function="],
    }});
    let grammar = grammar_of(old);
    let Rules::Lark(lark) = &grammar.parts()[0].rules else {
        panic!("Lark");
    };
    assert_eq!(
        lark,
        "start: t1* ANY_TEXT\nANY_TEXT: /(?s:.*)/\nt0[lazy]: ANY_TEXT \"<function=\"\n\
         t1: t0 (\"f>\" @content_0 (\"</function>\"))\n"
    );
    assert_eq!(
        grammar.parts()[1].field,
        "structural_tag.structures[0].schema"
    );

    let new = json!({"response_format": {"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "const_string", "value": "a"},
        {"type": "tag", "begin": "<x>", "content": {"type": "any_text"}, "end": "</x>"},
        {"type": "or", "elements": [{"type": "regex", "pattern": "[0-9]"}, {"type": "json_schema", "json_schema": schema}]},
    ]}}});
    let grammar = grammar_of(new);
    let Rules::Lark(lark) = &grammar.parts()[0].rules else {
        panic!("Lark");
    };
    assert_eq!(
        lark,
        "start: \"a\" \"<x>\" t0 (/[0-9]/ | @content_0)\nANY_TEXT: /(?s:.*)/\nt0[lazy]: ANY_TEXT (\"</x>\")\n"
    );
    assert_eq!(
        grammar.parts()[1].field,
        "response_format.format.elements[2].elements[1].json_schema"
    );

    for (format, words) in [
        (json!({"type": "qwen_xml_parameter"}), "not supported"),
        (
            json!({"type": "any_text", "excludes": ["a"]}),
            "not supported",
        ),
        (json!({"type": "tag", "begin": "a"}), "needs an array `end`"),
        (
            json!({"type": "triggered_tags", "triggers": ["<"], "tags": [
            {"begin": "x", "content": {"type": "any_text"}, "end": "y"}]}),
            "no trigger begins",
        ),
    ] {
        let error = reading(&json!({"structural_tag": {"format": format}})).unwrap_err();
        assert!(error.message.contains(words), "{}", error.message);
    }
}
