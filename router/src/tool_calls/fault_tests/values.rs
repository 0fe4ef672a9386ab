//! Values of arguments.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{answer, arguments, one_call, parse, with_regions, with_tags};
use crate::tool_calls::format::{Arguments, Body, Format};
use crate::tool_calls::test_families::parse_cut_everywhere;
use crate::tool_calls::{Plan, Tool};

/// A plan of tools with one parameter of this schema.
fn plan_of(format: &Arc<Format>, schema: &Value) -> Plan {
    let tools = Arc::new([Tool {
        name: "zqalpha".into(),
        parameters: json!({"type": "object", "properties": {"zqa": schema, "zqb": {"type": "string"}},
            "$defs": {"count": {"type": "integer"}, "box": {"type": "object"}}}),
        strict: false,
    }]);
    Plan::new(Arc::clone(format), tools, true, "").unwrap()
}

#[test]
fn values_keep_their_types_and_texts() {
    let sets = [
        json!({"zqtext": "null", "zqplace": "none"}),
        json!({"zqtext": "3", "zqcount": 3, "zqratio": 1e-7, "zqflag": false}),
        json!({"zqtext": "{\"a\": 1}", "zqobject": {"a": "{\"b\": 1}"}}),
        json!({"zqlist": ["a", "3", 3, null], "zqnothing": null}),
        json!({"zqtext": "{test1,test2", "zqplace": "a, b=c; 2>&1 <x> </y>"}),
        json!({"zqtext": "\u{1F600} \u{200D} é \u{2028}", "zqplace": "tab\tend"}),
        json!({"zqtext": "same", "zqplace": "same"}),
        json!({"zqobject": {}, "zqlist": []}),
        json!({"zqtext": ""}),
    ];
    for (family, ..) in with_regions() {
        for set in &sets {
            let answer = answer(&family, &[("zqalpha", set.clone())]).unwrap();
            let parsed = parse(&family, &answer);
            assert_eq!(
                arguments(&parsed),
                std::slice::from_ref(set),
                "{}",
                family.name
            );
        }
    }
}

#[test]
fn arguments_may_be_null_a_string_or_missing_in_objects() {
    for (family, regions, calls) in with_regions() {
        let Body::Object {
            arguments: key,
            arguments_in_string: false,
            ..
        } = &calls.body
        else {
            continue;
        };
        let whole = one_call(&family, &regions, &json!({"zqtext": "a"}));
        let own = "{\"zqtext\": \"a\"}";
        for (written, meant) in [
            ("null", json!({})),
            (
                "\"{\\\"zqtext\\\": \\\"\\\\u00e9\\\"}\"",
                json!({"zqtext": "é"}),
            ),
            ("\"\"", json!({})),
            (
                "{\"zqtext\": \"\\ud83d\\ude00\\u00e9\\/\"}",
                json!({"zqtext": "😀é/"}),
            ),
        ] {
            let parsed = parse(&family, &whole.replace(own, written));
            let context = format!("{}: {written} {parsed:?}", family.name);
            assert_eq!(parsed.calls.len(), 1, "{context}");
            assert_eq!(arguments(&parsed), [meant], "{context}");
        }
        if family.name == "yi_arguments_first" {
            continue;
        }
        let without = whole.replace(&format!(", \"{key}\": {own}"), "");
        assert_eq!(
            arguments(&parse(&family, &without)),
            [json!({})],
            "{}: {without}",
            family.name
        );
    }
}

#[test]
fn a_closing_tag_that_is_cut_is_no_part_of_the_value() {
    for (family, regions, tags) in with_tags() {
        let whole = one_call(&family, &regions, &json!({"zqtext": "one"}));
        let tag = whole.rfind(tags.close.trim()).unwrap();
        for cut in 1..tags.close.trim().len() {
            let Some(text) = whole.get(..tag + cut) else {
                continue;
            };
            let parsed = parse(&family, text);
            assert_eq!(
                parsed.calls[0].1, "{\"zqtext\": \"one",
                "{}: {text:?}",
                family.name
            );
        }
    }
}

#[test]
fn parameters_without_a_closing_tag_end_where_the_next_begins() {
    for (family, regions, tags) in with_tags() {
        let meant = json!({"zqtext": "one", "zqplace": "two"});
        let whole = one_call(&family, &regions, &meant);
        let missing = whole.replacen(tags.close.trim(), "", 1);
        let parsed = parse(&family, &missing);
        let found = arguments(&parsed);
        assert_eq!(found[0]["zqplace"], "two", "{}: {missing:?}", family.name);
        assert_eq!(
            found[0]["zqtext"].as_str().unwrap().trim(),
            "one",
            "{}: {missing:?}",
            family.name
        );
        // Tags in a text are text.
        let tagged = json!({"zqtext": format!("a {}other{} b", tags.open, tags.key_close), "zqplace": "two"});
        let parsed = parse(&family, &one_call(&family, &regions, &tagged));
        assert_eq!(arguments(&parsed), [tagged], "{}", family.name);
    }
}

#[test]
fn markers_in_strings_are_text_where_the_form_tells() {
    for (family, regions, calls) in with_regions() {
        let has_quotes = match &calls.body {
            Body::Object { .. } | Body::NameAsKey => true,
            Body::Named { arguments, .. } => !matches!(arguments, Arguments::Tagged(_)),
        };
        if !has_quotes {
            continue;
        }
        let markers: String = family.format.markers(true).concat();
        // These strings cannot hold their own quote.
        let markers = match &calls.body {
            Body::Named {
                arguments: Arguments::BareKeys { quote, .. },
                ..
            } => markers.replace(quote, ""),
            _ => markers,
        };
        let meant = json!({"zqtext": markers, "zqplace": "b"});
        let parsed = parse(&family, &one_call(&family, &regions, &meant));
        assert_eq!(arguments(&parsed), [meant], "{}", family.name);
    }
}

#[test]
fn tagged_values_follow_references_unions_and_lists_of_values() {
    for (family, regions, tags) in with_tags() {
        if !tags.json_mark.is_empty() {
            continue;
        }
        let text = one_call(&family, &regions, &json!({"zqa": "VALUE", "zqb": "b"}));
        for (schema, written, meant) in [
            (json!({"$ref": "#/$defs/count"}), "5", json!(5)),
            (
                json!({"anyOf": [{"$ref": "#/$defs/box"}, {"type": "null"}]}),
                "{\"a\": [1]}",
                json!({"a": [1]}),
            ),
            (
                json!({"anyOf": [{"$ref": "#/$defs/box"}, {"type": "null"}]}),
                "null",
                json!(null),
            ),
            (
                json!({"type": ["string", "null"]}),
                "weather",
                json!("weather"),
            ),
            (json!({"enum": ["none", "1", 2]}), "none", json!("none")),
            (json!({"enum": ["none", "1", 2]}), "1", json!("1")),
            (json!({"enum": ["none", "1", 2]}), "2", json!(2)),
            (
                json!({"type": "array"}),
                "['a', True, None]",
                json!(["a", true, null]),
            ),
            (json!({"type": "boolean"}), "True", json!(true)),
            (json!({"type": "string"}), "007", json!("007")),
            (json!({}), "7", json!("7")),
        ] {
            let plan = plan_of(&family.format, &schema);
            let parsed = parse_cut_everywhere(&plan, &text.replace("VALUE", written), &family.name);
            assert_eq!(
                arguments(&parsed)[0]["zqa"],
                meant,
                "{}: {schema} {written}",
                family.name
            );
        }
    }
}
