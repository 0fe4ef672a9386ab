//! Texts, reasoning, and where calls begin and end.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{answer, arguments, named, one_call, parse, with_regions};
use crate::tool_calls::format::{Body, Layout};
use crate::tool_calls::test_families::{families, parse_cut_everywhere};
use crate::tool_calls::{Piece, Plan, Tool};

#[test]
fn text_around_calls_stays_as_the_model_wrote_it() {
    for (family, regions, calls) in with_regions() {
        if calls.is_bare() {
            continue;
        }
        let call = one_call(&family, &regions, &json!({"zqtext": "a"}));
        for (before, after) in [
            ("Before", "after."),
            ("Before ", " after."),
            ("Before\n\n", "\n    after."),
            ("    indented", "\n"),
            ("", "    "),
        ] {
            let parsed = parse(&family, &format!("{before}{call}{after}"));
            let context = format!("{}: {before:?} {after:?} {parsed:?}", family.name);
            assert_eq!(parsed.calls.len(), 1, "{context}");
            let whole = format!("{before}{after}");
            match after.trim() {
                // White space before the call and at the end belongs to the markers.
                "" => assert_eq!(parsed.content.trim_end(), before.trim_end(), "{context}"),
                // A call may be followed by white space of its own.
                _ if family.name == "glm4_plain" => {}
                _ => assert_eq!(parsed.content, whole, "{context}"),
            }
        }
    }
}

#[test]
fn indentation_after_reasoning_is_kept() {
    for (family, regions, _) in with_regions() {
        let Some(reasoning) = regions
            .reasoning
            .filter(|reasoning| reasoning.open.starts_with('<'))
        else {
            continue;
        };
        if !family
            .format
            .markers(false)
            .iter()
            .all(|marker| *marker == reasoning.open || *marker == reasoning.close)
        {
            continue;
        }
        let text = format!("{}\nzq\n{}\n\n    code\n", reasoning.open, reasoning.close);
        let parsed = parse(&family, &text);
        assert_eq!(
            (parsed.reasoning.as_str(), parsed.content.as_str()),
            ("zq", "    code\n"),
            "{}",
            family.name
        );
    }
}

#[test]
fn a_call_without_arguments_has_an_empty_object_and_does_not_harm_the_next() {
    for (family, ..) in with_regions() {
        let (empty, full) = (json!({}), json!({"zqtext": "a", "zqcount": 2}));
        let calls = [
            ("zqalpha", empty.clone()),
            ("zq_beta-2", full.clone()),
            ("zqalpha", empty.clone()),
        ];
        let Some(answer) = answer(&family, &calls) else {
            continue;
        };
        let parsed = parse(&family, &answer);
        assert_eq!(
            arguments(&parsed),
            [empty.clone(), full, empty],
            "{}",
            family.name
        );
        assert_eq!(parsed.ended, 3, "{}", family.name);
    }
}

#[test]
fn calls_that_a_model_writes_without_closing_its_reasoning_are_calls() {
    let mut count = 0;
    for (family, regions, calls) in with_regions() {
        let Some(reasoning) = &regions.reasoning else {
            continue;
        };
        if calls.is_bare() {
            continue;
        }
        count += 1;
        let call = one_call(&family, &regions, &json!({"zqtext": "a"}));
        let (open, close) = (&reasoning.open, &reasoning.close);
        let parsed = parse(&family, &format!("{open}zq thought\n{call}"));
        let context = format!("{}: {parsed:?}", family.name);
        assert_eq!(
            (parsed.reasoning.trim(), parsed.calls.len()),
            ("zq thought", 1),
            "{context}"
        );
        assert_eq!(parsed.content, "", "{context}");
        // Calls in a thought that goes on are thoughts.
        for more in [
            format!("\nI could.{close}zq done"),
            format!("{close}zq done"),
        ] {
            let parsed = parse(&family, &format!("{open}zq {call}{more}"));
            let context = format!("{}: {more} {parsed:?}", family.name);
            assert_eq!(
                (parsed.content.trim(), parsed.calls.len()),
                ("zq done", 0),
                "{context}"
            );
            assert!(
                parsed.reasoning.contains(call.lines().next().unwrap()),
                "{context}"
            );
        }
        let parsed = parse(&family, &format!("{open}zq {call} and then"));
        assert_eq!(parsed.calls.len(), 0, "{}: {parsed:?}", family.name);
        // A thought, then the call that it was about.
        let parsed = parse(&family, &format!("{open}zq {call} so{close}{call}"));
        assert_eq!(parsed.calls.len(), 1, "{}: {parsed:?}", family.name);
        // A function that does not exist is thought about, not called.
        let unknown = call.replace("zqalpha", "zqgamma");
        let parsed = parse(&family, &format!("{open}zq {unknown}"));
        assert_eq!(parsed.calls.len(), 0, "{}: {parsed:?}", family.name);
    }
    assert!(count > 15, "{count}");
}

#[test]
fn reasoning_that_never_closes_is_reasoning() {
    for family in families() {
        let Layout::Regions(regions) = &family.format.layout else {
            continue;
        };
        let Some(reasoning) = &regions.reasoning else {
            continue;
        };
        let parsed = parse(&family, &format!("{}zq thought <b> {{", reasoning.open));
        assert_eq!(
            parsed.reasoning.trim(),
            "zq thought <b> {",
            "{}",
            family.name
        );
        assert_eq!(parsed.content, "", "{}", family.name);
    }
}

#[test]
fn a_thought_that_the_template_closes_is_over() {
    let mut count = 0;
    for (family, regions, _) in with_regions() {
        let Some(reasoning) = &regions.reasoning else {
            continue;
        };
        // As `enable_thinking: false` renders the prompt.
        let anchor = &family.format.anchor;
        let prompt = format!("{anchor}{}\n\n{}\n\n", reasoning.open, reasoning.close);
        let plan = family.plan(&prompt).unwrap();
        let parsed = parse_cut_everywhere(&plan, "zq answer", &family.name);
        assert_eq!(
            (parsed.content.as_str(), parsed.reasoning.as_str()),
            ("zq answer", ""),
            "{}",
            family.name
        );
        count += 1;
    }
    assert!(count > 15, "{count}");
}

#[test]
fn a_call_that_is_cut_keeps_what_was_written() {
    for (family, regions, calls) in with_regions() {
        let whole = one_call(&family, &regions, &json!({"zqtext": "one two three"}));
        let cut = whole.find("three").unwrap() + 2;
        let parsed = parse(&family, &whole[..cut]);
        if matches!(&calls.body, Body::Object { .. }) && parsed.calls.is_empty() {
            // Nothing is known before the name.
            assert_eq!(family.name, "yi_arguments_first");
            continue;
        }
        let context = format!("{}: {parsed:?}", family.name);
        assert_eq!((parsed.calls.len(), parsed.ended), (1, 0), "{context}");
        assert_eq!(parsed.calls[0].0, "zqalpha", "{context}");
        assert!(parsed.calls[0].1.ends_with("one two th"), "{context}");
        assert!(!parsed.content.contains("one"), "{context}");
    }
}

#[test]
fn a_function_that_does_not_exist_is_called_by_its_name() {
    for (family, regions, calls) in with_regions() {
        let call =
            one_call(&family, &regions, &json!({"zqtext": "a"})).replace("zqalpha", "zqgamma");
        let parsed = parse(&family, &call);
        match calls.is_bare() {
            // Only a known name tells a call from other JSON.
            true => assert_eq!(parsed.content, call, "{}", family.name),
            false => assert_eq!(parsed.calls[0].0, "zqgamma", "{}", family.name),
        }
    }
}

#[test]
fn identifiers_are_unique() {
    for (family, regions, calls) in with_regions() {
        let call = one_call(&family, &regions, &json!({}));
        let separator = if calls.list {
            "\n"
        } else {
            calls.separator.as_str()
        };
        let plan = family.plan("").unwrap();
        let mut parser = plan.parser();
        let mut pieces = parser.push(&format!("{call}{separator}{call}"));
        pieces.extend(parser.finish());
        let ids = pieces.iter().filter_map(|piece| match piece {
            Piece::CallBegin { id, .. } => Some(id.as_str()),
            _ => None,
        });
        let ids: Vec<&str> = ids.collect();
        let unique: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(unique.len(), ids.len(), "{}: {ids:?}", family.name);
    }
}

#[test]
fn one_call_is_left_of_several_that_are_not_wanted() {
    for (family, ..) in with_regions() {
        let calls = [
            ("zqalpha", json!({"zqtext": "a"})),
            ("zq_beta-2", json!({})),
        ];
        let Some(text) = answer(&family, &calls) else {
            continue;
        };
        let mut plan = family.plan(&family.prompt()).unwrap();
        plan.prefix.clear();
        plan.single_call = true;
        let parsed = parse_cut_everywhere(&plan, &text, &family.name);
        assert_eq!(parsed.calls.len(), 1, "{}", family.name);
        assert_eq!(parsed.content.trim(), "", "{}", family.name);
    }
}

#[test]
fn headers_of_channels_are_read_with_and_without_their_parts() {
    let family = named("harmony");
    let tools: Arc<[Tool]> = ["zqalpha", "zq-web.search"]
        .map(|name| Tool {
            name: name.into(),
            parameters: Value::Null,
            strict: false,
        })
        .into();
    let plan = Plan::new(Arc::clone(&family.format), tools, true, &family.prompt()).unwrap();
    for (header, name) in [
        (
            "<|channel|>commentary to=functions.zq-web.search <|constrain|>json<|message|>",
            "zq-web.search",
        ),
        (
            "<|channel|>commentary to=functions.zqalpha<|message|>",
            "zqalpha",
        ),
        (
            "<|channel|>analysis to=functions.zqalpha code<|message|>",
            "zqalpha",
        ),
        (
            "<|channel|>commentary to=zqalpha <|constrain|>json<|message|>",
            "zqalpha",
        ),
        (
            " to=functions.zqalpha<|channel|>commentary <|constrain|>json<|message|>",
            "zqalpha",
        ),
        (
            "<|channel|>analysis<|message|>t<|end|><|start|>assistant to=functions.zqalpha<|channel|>commentary<|message|>",
            "zqalpha",
        ),
    ] {
        let parsed = parse_cut_everywhere(&plan, &format!("{header}{{\"a\": 1}}<|call|>"), header);
        assert_eq!(
            parsed.calls,
            [(name.to_owned(), "{\"a\": 1}".to_owned())],
            "{header}"
        );
        assert_eq!(parsed.content, "", "{header}");
    }
    // Text that names a recipient is text.
    let text = "<|channel|>final<|message|>Send it to=functions.zqalpha now";
    let parsed = parse_cut_everywhere(&plan, text, text);
    assert_eq!(
        (parsed.content.as_str(), parsed.calls.len()),
        ("Send it to=functions.zqalpha now", 0)
    );
}
