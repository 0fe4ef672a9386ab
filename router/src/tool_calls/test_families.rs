//! Template families of the tests, and answers in their formats.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Choice, Format, Parser, Piece, Plan, Tool, find};
use crate::chat_template::{ChatTemplate, Message, RenderOptions};

/// A template family.
pub struct Family {
    pub name: String,
    pub template: ChatTemplate,
    pub format: Arc<Format>,
    /// Text that ends an assistant's turn.
    pub end: String,
}

/// An answer, taken apart.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<(String, String)>,
    /// Number of calls that have ended.
    pub ended: usize,
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tool_calls/testdata")
}

pub fn data<T: serde::de::DeserializeOwned>(file: &str) -> T {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn families() -> Vec<Family> {
    let ends: BTreeMap<String, String> = data("ends.json");
    let families = ends.into_iter().map(|(name, end)| {
        let file = folder().join("families").join(format!("{name}.jinja"));
        let source = std::fs::read_to_string(file).unwrap();
        Family::new(name, &source, end).unwrap()
    });
    families.collect()
}

pub fn tools() -> Arc<[Tool]> {
    let properties = json!({
        "zqtext": {"type": "string"}, "zqcount": {"type": "integer"}, "zqratio": {"type": "number"},
        "zqflag": {"type": "boolean"}, "zqnothing": {"type": ["integer", "null"]}, "zqlist": {"type": "array"},
        "zqobject": {"type": "object"}, "zqplace": {"type": "string"},
    });
    let tool = |name: &str| Tool {
        name: name.into(),
        parameters: json!({"type": "object", "properties": properties}),
        strict: false,
    };
    Arc::new([tool("zqalpha"), tool("zq_beta-2")])
}

impl Family {
    /// A family whose template is `source`; `end`: text that ends an assistant's turn.
    pub fn new(name: String, source: &str, end: String) -> Option<Self> {
        let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let tokens = tokens.as_object().cloned().unwrap();
        let template = ChatTemplate::compile(source, tokens).ok()?;
        let (format, unknown) = find(Some(&template), &[], Choice::default());
        assert!(unknown.is_empty());
        Some(Self {
            name,
            template,
            format: Arc::new(format),
            end,
        })
    }

    /// The call number `index` in a message.
    pub fn call(&self, index: usize, name: &str, arguments: &Value) -> Value {
        let id = match self.name.as_str() {
            // These identifiers hold the name.
            "kimi" => format!("functions.{name}:{index}"),
            _ => format!("a1b2c3d{index}e"),
        };
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    /// Prompt of a question.
    pub fn prompt(&self) -> String {
        self.render(&[json!({"role": "user", "content": "question"})], true)
            .unwrap()
    }

    /// The assistant's turn after the question, without its end; `None` if the template refuses it. Begins where the
    /// header that the history shows ends.
    pub fn answer(&self, message: &Value) -> Option<(String, String)> {
        let question = json!({"role": "user", "content": "question"});
        let before = self.render(std::slice::from_ref(&question), false)?;
        let whole = self.render(&[question, message.clone()], false)?;
        let tail = whole.strip_prefix(&before)?;
        let anchor = self.format.anchor.as_str();
        let body = tail.strip_prefix(anchor).unwrap_or(tail);
        let body = body.strip_suffix(&self.end).unwrap_or(body);
        Some((format!("{before}{anchor}"), body.to_owned()))
    }

    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Option<String> {
        let messages: Vec<Message> =
            serde_json::from_value(Value::Array(messages.to_vec())).unwrap();
        let tools: Vec<Value> = tools()
            .iter()
            .map(|tool| {
                json!({"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}})
            })
            .collect();
        let mut variables = Map::new();
        variables.insert("tools".into(), tools.into());
        let options = RenderOptions {
            add_generation_prompt,
            continue_final_message: false,
            variables: Some(&variables),
        };
        self.template.render(&messages, &options).ok()
    }

    pub fn plan(&self, prompt: &str) -> Option<Plan> {
        Plan::new(Arc::clone(&self.format), tools(), true, prompt)
    }
}

/// Joins pieces, and checks their order.
pub fn join(pieces: impl IntoIterator<Item = Piece>) -> Parsed {
    let mut parsed = Parsed::default();
    for piece in pieces {
        match piece {
            Piece::Content(text) => parsed.content.push_str(&text),
            Piece::Reasoning(text) => parsed.reasoning.push_str(&text),
            Piece::CallBegin { index, id, name } => {
                assert_eq!(index, parsed.calls.len());
                assert!(!id.is_empty() && !name.is_empty());
                parsed.calls.push((name, String::new()));
            }
            Piece::CallArguments {
                index,
                json_fragment,
            } => {
                assert_eq!(index + 1, parsed.calls.len());
                assert!(!json_fragment.is_empty() && parsed.ended == index);
                parsed.calls[index].1.push_str(&json_fragment);
            }
            Piece::CallEnd { index } => {
                assert_eq!(index, parsed.ended);
                parsed.ended += 1;
            }
        }
    }
    parsed
}

/// Parses an answer in one piece.
pub fn parse(plan: &Plan, answer: &str) -> Parsed {
    let mut parser = plan.parser();
    let pieces = parser.push(answer);
    join(pieces.into_iter().chain(parser.finish()))
}

/// Parses an answer whole, in two parts at each of its characters, and character by character. All must agree.
pub fn parse_cut_everywhere(plan: &Plan, answer: &str, context: &str) -> Parsed {
    let whole = parse(plan, answer);
    let feed = |parts: &[&str]| {
        let mut parser: Parser = plan.parser();
        let mut pieces = Vec::new();
        for part in parts {
            pieces.extend(parser.push(part));
        }
        pieces.extend(parser.finish());
        join(pieces)
    };
    for (cut, _) in answer.char_indices() {
        let parts = [&answer[..cut], &answer[cut..]];
        assert_eq!(feed(&parts), whole, "{context}, cut at {cut} of {answer:?}");
    }
    let ends = answer.char_indices().map(|(at, c)| (at, at + c.len_utf8()));
    let characters: Vec<&str> = ends.map(|(start, end)| &answer[start..end]).collect();
    assert_eq!(
        feed(&characters),
        whole,
        "{context}, character by character: {answer:?}"
    );
    whole
}
