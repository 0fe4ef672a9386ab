//! Grammars of all template families, against the calls that their templates render.

use gridwork_engine::TokenTable;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::*;
use crate::tool_calls::test_families::{Family, families};

/// Number of bytes of `text` that the grammar allows, and true if the answer may end there.
fn allowed(grammar: &Grammar, text: &str) -> (usize, bool) {
    let environment = ApproximateTokEnv::single_byte_env();
    let factory = ParserFactory::new_simple(&environment).unwrap();
    let parsed: TopLevelGrammar =
        serde_json::from_str(&grammar.serialized(&TokenTable::default())).unwrap();
    let parser = factory.create_parser(parsed);
    let parser = parser.unwrap_or_else(|error| {
        panic!("{error} in {}", grammar.serialized(&TokenTable::default()))
    });
    let mut matcher = Matcher::new(Ok(parser));
    for (at, byte) in text.bytes().enumerate() {
        if matcher.try_consume_tokens(&[u32::from(byte)]).unwrap() == 0 {
            return (at, false);
        }
    }
    (text.len(), matcher.is_accepting().unwrap())
}

fn turn(family: &Family, names: &[&str], content: Option<&str>) -> Option<(String, String)> {
    let calls = names.iter().enumerate().map(|(index, name)| {
        let id = match family.name.as_str() {
            "kimi" => format!("functions.{name}:{index}"),
            _ => format!("a1b2c3d{index}e"),
        };
        json!({"id": id, "type": "function", "function": {
            "name": name, "arguments": {"zqtext": "zq one", "zqcount": 7, "zqlist": [1, "a"]}}})
    });
    let calls: Vec<Value> = calls.collect();
    family.answer(&json!({"role": "assistant", "content": content, "tool_calls": calls}))
}

/// Families whose templates write more around a call than its name and arguments, or lists in another form than JSON.
const OTHERWISE: [&str; 9] = [
    "wrapped",
    "arguments_in_string",
    "yi_arguments_first",
    "mistral_list",
    "command_a",
    "functiongemma",
    "gemma4",
    "jamba",
    "ernie",
];

#[test]
fn required_calls_are_written_as_the_template_shows_them() {
    let mut wrong = Vec::new();
    for family in families() {
        if !family.format.has_calls()
            || family.name == "harmony"
            || OTHERWISE.contains(&family.name.as_str())
        {
            continue;
        }
        let one = ["zqalpha"];
        let Some((prompt, answer)) = turn(&family, &one, None) else {
            continue;
        };
        let plan = family.plan(&prompt).unwrap();
        let grammar = answer_grammar(&plan, &ToolChoice::Required, None, &[])
            .unwrap()
            .unwrap();
        let answer = answer
            .trim_start_matches("<think>\n\n</think>")
            .trim_start()
            .to_owned();
        let (len, ends) = allowed(&grammar, &answer);
        if len != answer.len() || !ends {
            wrong.push(format!(
                "{}: {:?} and then not {:?}",
                family.name,
                &answer[..len],
                &answer[len..]
            ));
        }
        let other = answer.replace("zqalpha", "zqgamma");
        let (len, _) = allowed(&grammar, &other);
        assert!(len < other.len(), "{}: {other:?}", family.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn text_is_free_beside_strict_calls_and_their_arguments_are_not() {
    for family in families() {
        let tested = ["hermes", "qwen_coder", "deepseek_v31", "functionary_tag"];
        if !tested.contains(&family.name.as_str()) {
            continue;
        }
        let (prompt, answer) = turn(&family, &["zqalpha"], None).unwrap();
        let mut plan = family.plan(&prompt).unwrap();
        let mut tools = plan.tools.to_vec();
        tools.iter_mut().for_each(|tool| tool.strict = true);
        plan.tools = tools.into();
        let grammar = answer_grammar(&plan, &ToolChoice::Auto, None, &[])
            .unwrap()
            .unwrap();
        for text in [
            "Just text. {\"a\": 1}",
            "",
            answer.trim(),
            &format!("Before. {}", answer.trim()),
        ] {
            assert_eq!(
                allowed(&grammar, text),
                (text.len(), true),
                "{}: {text:?}",
                family.name
            );
        }
        let wrong = answer.replace("7", "\"seven\"");
        let (len, _) = allowed(&grammar, &wrong);
        assert!(
            len < wrong.len() || family.name == "qwen_coder",
            "{}: {wrong:?}",
            family.name
        );
    }
}
