//! Finds the formats of the template families, and parses the turns that their templates render.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::format::{Calls, Layout};
use super::test_families::{Family, data, families, parse_cut_everywhere};

#[test]
fn the_formats_of_all_families_are_found() {
    let expected: BTreeMap<String, [String; 2]> = data("formats_found.json");
    let families = families();
    assert!(families.len() >= 40);
    let found: BTreeMap<String, [String; 2]> = families
        .iter()
        .map(|family| {
            let format = &family.format;
            let described = [format.describe_calls(), format.describe_reasoning()];
            (family.name.clone(), described)
        })
        .collect();
    let wrong: Vec<String> = found
        .iter()
        .filter(|(name, found)| expected.get(*name) != Some(*found))
        .map(|(name, found)| format!("{}: {}", json!(name), json!(found)))
        .collect();
    assert!(wrong.is_empty(), "found otherwise:\n{}", wrong.join(",\n"));
    assert_eq!(found.len(), expected.len());
}

/// Sets of arguments, from simple to hostile.
fn argument_sets() -> Vec<Value> {
    vec![
        json!({"zqtext": "zqvalue"}),
        json!({}),
        json!({"zqtext": "zq one, two (three) [four]: five = six", "zqcount": 7}),
        json!({"zqcount": -12, "zqratio": 2.5, "zqflag": true, "zqnothing": null}),
        json!({"zqlist": [1, "zq a", {"zqb": []}], "zqobject": {"zqa": {"zqb": [null, false]}}, "zqtext": "zqz"}),
        json!({"zqtext": "zqé😀日本", "zqplace": "zq São Paulo"}),
        json!({"zqtext": "    zq indented\n        lines\n"}),
        json!({"zqtext": "12", "zqplace": "true"}),
    ]
}

/// Strings that need escapes, for forms that have them.
fn escaped_sets() -> Vec<Value> {
    vec![
        json!({"zqtext": "zq \"quoted\" and 'single' \\ back\\slash\ttab\r\n{brace}"}),
        json!({"zqtext": "</tool_call><tool_call>[TOOL_CALLS]```</function>", "zqplace": "}]}"}),
    ]
}

fn calls(family: &Family, arguments: &[&Value]) -> Value {
    let names = ["zqalpha", "zq_beta-2"];
    let calls = arguments
        .iter()
        .enumerate()
        .map(|(index, arguments)| family.call(index, names[index % 2], arguments));
    calls.collect()
}

fn check(family: &Family, message: &Value) {
    let Some((prompt, answer)) = family.answer(message) else {
        return;
    };
    let plan = family.plan(&prompt).unwrap();
    let parsed = parse_cut_everywhere(&plan, &answer, &family.name);
    let text = |key: &str| message[key].as_str().unwrap_or_default();
    let context = format!("{}: {answer:?} is {parsed:?}", family.name);
    assert_eq!(parsed.content.trim(), text("content").trim(), "{context}");
    // A template may leave out earlier thoughts.
    if family.format.has_reasoning() && answer.contains("thought") {
        assert_eq!(
            parsed.reasoning.trim(),
            text("reasoning_content").trim(),
            "{context}"
        );
    }
    let wanted = message["tool_calls"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(parsed.calls.len(), wanted.len(), "{context}");
    assert_eq!(parsed.ended, wanted.len(), "{context}");
    for ((name, arguments), wanted) in parsed.calls.iter().zip(&wanted) {
        let function = &wanted["function"];
        assert_eq!(name.as_str(), function["name"], "{context}");
        let arguments: Value =
            serde_json::from_str(arguments).unwrap_or_else(|_| panic!("{context}"));
        assert_eq!(arguments, function["arguments"], "{context}");
    }
}

#[test]
fn rendered_turns_are_parsed_back_wherever_they_are_cut() {
    for family in families() {
        if !family.format.has_calls() || family.name == "harmony" {
            continue;
        }
        let has_escapes = !["Tagged", "BareKeys"]
            .iter()
            .any(|kind| format!("{:?}", family.format).contains(kind));
        let mut sets = argument_sets();
        if has_escapes {
            sets.extend(escaped_sets());
        }
        // A reasoning model thinks first; its template may open the thought.
        let reasoning = family
            .format
            .has_reasoning()
            .then_some("zq thought\n\nmore");
        for arguments in &sets {
            let tool_calls = calls(&family, &[arguments]);
            check(
                &family,
                &json!({"role": "assistant", "content": null, "tool_calls": tool_calls}),
            );
            check(
                &family,
                &json!({"role": "assistant", "content": null, "reasoning_content": reasoning,
                                   "tool_calls": tool_calls}),
            );
        }
        let several = calls(&family, &[&sets[0], &sets[1], &sets[2], &sets[3]]);
        check(
            &family,
            &json!({"role": "assistant", "content": null, "tool_calls": several}),
        );
        let is_bare = match &family.format.layout {
            Layout::Regions(regions) => regions.calls.as_ref().is_some_and(Calls::is_bare),
            Layout::Channels(_) => false,
        };
        if !is_bare {
            check(
                &family,
                &json!({"role": "assistant", "content": "zq I will look.", "reasoning_content": reasoning,
                                   "tool_calls": several}),
            );
        }
        check(
            &family,
            &json!({"role": "assistant", "content": "zq An answer {\"a\": [1]}\nwith <b>lines</b>.",
                               "reasoning_content": reasoning}),
        );
    }
}

#[test]
fn an_answer_after_an_opened_thought_begins_in_it() {
    let mut count = 0;
    for family in families() {
        let prompt = family.prompt();
        let Some(plan) = family.plan(&prompt) else {
            continue;
        };
        if !plan.begins_in_reasoning() {
            continue;
        }
        count += 1;
        let message =
            json!({"role": "assistant", "content": "zq answer", "reasoning_content": "zq thought"});
        let Some((before, answer)) = family.answer(&message) else {
            continue;
        };
        let opened = prompt.strip_prefix(&before).unwrap();
        let Some(rest) = answer.strip_prefix(opened.trim_end()) else {
            continue;
        };
        let parsed = parse_cut_everywhere(&plan, rest, &family.name);
        assert_eq!(parsed.reasoning.trim(), "zq thought", "{}", family.name);
        assert_eq!(parsed.content.trim(), "zq answer", "{}", family.name);
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn channels_are_told_apart() {
    let family = families()
        .into_iter()
        .find(|family| family.name == "harmony")
        .unwrap();
    let plan = family.plan(&family.prompt()).unwrap();
    let parse = |answer: &str| parse_cut_everywhere(&plan, answer, "harmony");
    let parsed = parse(
        "<|channel|>analysis<|message|>zq think<|end|><|start|>assistant<|channel|>commentary<|message|>zq first\
         <|end|><|start|>assistant<|channel|>commentary to=functions.zqalpha <|constrain|>json<|message|>\
         {\"zqtext\": \"a\"}<|call|>",
    );
    assert_eq!(
        (parsed.reasoning.as_str(), parsed.content.as_str()),
        ("zq think", "zq first")
    );
    assert_eq!(
        parsed.calls,
        [("zqalpha".to_owned(), "{\"zqtext\": \"a\"}".to_owned())]
    );
    let parsed = parse(" to=functions.zqalpha<|channel|>commentary json<|message|>{}<|call|>");
    assert_eq!(parsed.calls, [("zqalpha".to_owned(), "{}".to_owned())]);
    let parsed = parse("<|channel|>final<|message|>zq done<|return|>");
    assert_eq!(
        (parsed.content.as_str(), parsed.calls.len()),
        ("zq done", 0)
    );
    assert_eq!(parse("zq no header").content, "zq no header");
    assert_eq!(parse("<|channel|>zq cut").content, "<|channel|>zq cut");
}
