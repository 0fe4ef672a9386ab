//! Grammars of all template families, against the calls that their templates render.

use gridwork_engine::TokenTable;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::*;
use crate::tool_calls::Tool;
use crate::tool_calls::test_families::{Family, families};

/// Number of bytes of `text` that the grammar allows, and true if the answer may end there.
fn allowed(grammar: &Grammar, text: &str) -> (usize, bool) {
    let environment = ApproximateTokEnv::single_byte_env();
    let factory = ParserFactory::new_simple(&environment).unwrap();
    let serialized = grammar.serialized(&TokenTable::default());
    let parsed: TopLevelGrammar = serde_json::from_str(&serialized).unwrap();
    let parser = factory.create_parser(parsed);
    let parser = parser.unwrap_or_else(|error| panic!("{error} in {serialized}"));
    let mut matcher = Matcher::new(Ok(parser));
    for (at, byte) in text.bytes().enumerate() {
        if matcher.try_consume_tokens(&[u32::from(byte)]).unwrap() == 0 {
            return (at, false);
        }
    }
    (text.len(), matcher.is_accepting().unwrap())
}

/// Where the grammar departs from `text`; `None` if it allows the whole text as an answer.
fn departure(grammar: &Grammar, text: &str) -> Option<String> {
    match allowed(grammar, text) {
        (len, true) if len == text.len() => None,
        (len, _) => Some(format!(
            "{:?} and then not {:?}",
            &text[..len],
            &text[len..]
        )),
    }
}

/// The prompt and the answer in which the template shows these calls.
fn turn(family: &Family, calls: &[(&str, &Value)]) -> Option<(String, String)> {
    let calls = calls.iter().enumerate();
    let calls = calls.map(|(index, (name, arguments))| family.call(index, name, arguments));
    let calls: Vec<Value> = calls.collect();
    family.answer(&json!({"role": "assistant", "content": null, "tool_calls": calls}))
}

/// Sets of arguments, their keys in the order of the tools' schemas. `escapes`: the form can escape any text.
fn argument_sets(escapes: bool) -> Vec<Value> {
    let mut sets = vec![
        json!({}),
        json!({"zqtext": "zq one, two: three", "zqcount": 7, "zqlist": [1, "a"]}),
        json!({"zqtext": "lines\n  and \"quotes\" and 'others', é😀日本 </b> {c}: [d]"}),
        json!({"zqcount": -12, "zqratio": 2.5, "zqflag": true, "zqnothing": null}),
        json!({"zqflag": false, "zqobject": {"zqa": {"zqb": [null, false, "é, \"q\""]}, "zqc": {}}, "zqplace": ""}),
    ];
    if escapes {
        sets.push(
            json!({"zqtext": "back\\slash \t \r\n </tool_call><function=f>```", "zqplace": "}]}"}),
        );
    }
    sets
}

fn has_escapes(family: &Family) -> bool {
    let format = format!("{:?}", family.format);
    !["Tagged", "BareKeys"]
        .iter()
        .any(|kind| format.contains(kind))
}

fn required(plan: &Plan) -> Grammar {
    let grammar = answer_grammar(plan, &ToolChoice::Required, None, &[]);
    grammar.unwrap().unwrap()
}

#[test]
fn required_calls_are_written_as_the_template_shows_them() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for family in families() {
        if !family.format.has_calls() {
            continue;
        }
        let mut turns: Vec<Vec<(&str, Value)>> = argument_sets(has_escapes(&family))
            .into_iter()
            .map(|arguments| vec![("zqalpha", arguments)])
            .collect();
        if family.name != "harmony" {
            let two = [json!({"zqcount": 1}), json!({"zqtext": "zq"})];
            let [first, second] = two;
            turns.push(vec![("zqalpha", first), ("zq_beta-2", second)]);
        }
        for calls in &turns {
            let calls: Vec<(&str, &Value)> = calls.iter().map(|(n, a)| (*n, a)).collect();
            let Some((prompt, answer)) = turn(&family, &calls) else {
                continue;
            };
            // A turn ends with its end token, before which nothing is generated.
            let answer = answer.strip_suffix("<|call|>").unwrap_or(&answer);
            let grammar = required(&family.plan(&prompt).unwrap());
            count += 1;
            if let Some(departure) = departure(&grammar, answer) {
                wrong.push(format!("{}: {departure}", family.name));
            }
            let other = answer.replace("zqalpha", "zqgamma");
            if departure(&grammar, &other).is_none() {
                wrong.push(format!("{}: another function is called", family.name));
            }
        }
    }
    assert!(count > 250, "{count}");
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A plan in which the first tool has these properties.
fn plan_with(family: &Family, properties: &Value, strict: bool) -> Plan {
    let mut plan = family.plan(&family.prompt()).unwrap();
    let tool = |name: &str, properties: &Value, strict| Tool {
        name: name.into(),
        parameters: json!({"type": "object", "properties": properties, "additionalProperties": false,
            "$defs": {"color": {"enum": ["red", "blue"]}}}),
        strict,
    };
    plan.tools = Arc::new([
        tool("zqalpha", properties, strict),
        tool(
            "zq_beta-2",
            &json!({"zqtext": {"type": "string", "pattern": "^a$"}}),
            false,
        ),
    ]);
    plan.prefix.clear();
    plan
}

#[test]
fn strings_follow_their_constraints_in_every_form() {
    let properties = json!({
        "zqcode": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 6},
        "zqday": {"type": "string", "format": "date"},
        "zqcolor": {"$ref": "#/$defs/color"},
        "zqshort": {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]},
    });
    let fitting = [
        json!({"zqcode": "AB-12", "zqday": "2024-02-29", "zqcolor": "blue", "zqshort": "éé"}),
        json!({"zqshort": null}),
        json!({"zqcolor": "red"}),
    ];
    let unfitting = [
        json!({"zqcode": "ab-12"}),
        json!({"zqcode": "AB-1234"}),
        json!({"zqday": "2024-13-01"}),
        json!({"zqcolor": "green"}),
        json!({"zqshort": "é"}),
    ];
    let mut wrong = Vec::new();
    for family in families() {
        if !family.format.has_calls() {
            continue;
        }
        let grammar = required(&plan_with(&family, &properties, false));
        for (arguments, fits) in fitting
            .iter()
            .map(|arguments| (arguments, true))
            .chain(unfitting.iter().map(|arguments| (arguments, false)))
        {
            let (_, answer) = turn(&family, &[("zqalpha", arguments)]).unwrap();
            let answer = answer.strip_suffix("<|call|>").unwrap_or(&answer);
            let departure = departure(&grammar, answer);
            if departure.is_none() != fits {
                wrong.push(format!("{}: {arguments}: {departure:?}", family.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_constraint_that_a_form_cannot_hold_is_refused_with_its_place() {
    let family = |name: &str| {
        families()
            .into_iter()
            .find(|family| family.name == name)
            .unwrap()
    };
    let place = "tools[0].function.parameters.properties.zqa";
    for (name, property, path) in [
        (
            "qwen_coder",
            json!({"type": "string", "format": "iri"}),
            ".format",
        ),
        (
            "qwen_coder",
            json!({"type": "string", "pattern": r"a\bc"}),
            ".pattern",
        ),
        (
            "qwen_coder",
            json!({"type": ["string", "integer"], "minimum": 3}),
            ".minimum",
        ),
        (
            "gemma4",
            json!({"type": "array", "uniqueItems": true}),
            ".uniqueItems",
        ),
        (
            "gemma4",
            json!({"type": "object", "properties": {"b": {"not": {}}}}),
            ".properties.b.not",
        ),
        (
            "lfm2",
            json!({"type": "array", "items": {"allOf": [{}, {}]}}),
            ".items.allOf",
        ),
        (
            "arguments_in_string",
            json!({"type": "object", "minProperties": 1}),
            ".minProperties",
        ),
    ] {
        let family = family(name);
        let refused = |strict, choice: &ToolChoice| {
            let plan = plan_with(&family, &json!({"zqa": property}), strict);
            answer_grammar(&plan, choice, None, &[])
        };
        for (strict, choice) in [(false, ToolChoice::Required), (true, ToolChoice::Auto)] {
            let error = refused(strict, &choice).unwrap_err();
            assert_eq!(
                error.field.as_deref(),
                Some(format!("{place}{path}").as_str()),
                "{name}"
            );
        }
        assert_eq!(refused(false, &ToolChoice::Auto), Ok(None), "{name}");
    }
}

#[test]
fn text_is_free_beside_strict_calls_and_their_arguments_are_not() {
    for family in families() {
        if !family.format.has_calls() {
            continue;
        }
        let properties =
            json!({"zqcount": {"type": "integer", "maximum": 9}, "zqtext": {"type": "string"}});
        let plan = plan_with(&family, &properties, true);
        let grammar = answer_grammar(&plan, &ToolChoice::Auto, None, &[])
            .unwrap()
            .unwrap();
        let (_, good) = turn(
            &family,
            &[("zqalpha", &json!({"zqcount": 7, "zqtext": "zq"}))],
        )
        .unwrap();
        let (_, bad) = turn(&family, &[("zqalpha", &json!({"zqcount": 12}))]).unwrap();
        // The arguments of a tool that is not strict are free.
        let (_, free) = turn(
            &family,
            &[("zq_beta-2", &json!({"zqtext": "b", "zqnew": [1]}))],
        )
        .unwrap();
        let name = family.name.as_str();
        let end = |answer: &str| {
            let answer = answer.strip_suffix("<|call|>").unwrap_or(answer);
            answer.trim_start().to_owned()
        };
        let texts: &[&str] = match name {
            "harmony" => &[
                "<|channel|>final<|message|>Just text. {\"a\": 1}",
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>So.",
            ],
            _ => &["Just text. (a: 1)", ""],
        };
        for text in texts {
            assert_eq!(departure(&grammar, text), None, "{name}");
        }
        for answer in [&good, &free] {
            assert_eq!(departure(&grammar, &end(answer)), None, "{name}");
        }
        let len = allowed(&grammar, &end(&bad)).0;
        assert!(len < end(&bad).len(), "{name}: {bad:?}");
    }
}

#[test]
fn strict_calls_are_held_in_every_header_of_channels() {
    let family = families()
        .into_iter()
        .find(|family| family.name == "harmony")
        .unwrap();
    let plan = plan_with(
        &family,
        &json!({"zqcount": {"type": "integer", "maximum": 9}}),
        true,
    );
    let grammar = answer_grammar(&plan, &ToolChoice::Auto, None, &[])
        .unwrap()
        .unwrap();
    for header in [
        "<|channel|>commentary to=functions.zqalpha <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.zqalpha<|message|>",
        "<|channel|>commentary to=zqalpha <|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.zqalpha code<|message|>",
        " to=functions.zqalpha<|channel|>commentary json<|message|>",
        " to=functions.zqalpha<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>analysis<|message|>Call it.<|end|><|start|>assistant to=functions.zqalpha<|channel|>commentary\
         json<|message|>",
        "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>commentary to=functions.zqalpha \
         <|constrain|>json<|message|>",
    ] {
        let with = |arguments: &str| format!("{header}{arguments}");
        assert_eq!(departure(&grammar, &with("{\"zqcount\": 7}")), None);
        for arguments in ["{\"zqcount\": 12}", "{\"zqother\": 1}", "text"] {
            assert!(
                departure(&grammar, &with(arguments)).is_some(),
                "{header}{arguments}"
            );
        }
        let other = with("{\"zqcount\": 12}").replace("zqalpha", "zqalphabet");
        assert_eq!(departure(&grammar, &other), None);
    }
}
