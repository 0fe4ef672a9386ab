//! Conversations with unusual words, rendered to see where the words appear.

use serde_json::{Map, Value, json};

use crate::chat_template::{ChatTemplate, Message, RenderOptions};

pub const USER: &str = "zqquestion";
pub const CONTENT: &str = "zqanswer";
pub const REASONING: &str = "zqthought";
pub const NAMES: [&str; 2] = ["zqalpha", "zqbeta"];
pub const KEYS: [&str; 2] = ["zqkeyone", "zqkeytwo"];
pub const VALUES: [&str; 2] = ["zqvalueone", "zqvaluetwo"];
pub const INNER: &str = "zqinner";
pub const NUMBER: &str = "735219";
/// Some templates take nine letters and digits alone.
pub const IDS: [&str; 2] = ["zq1a2b3c4", "zq5d6e7f8"];

/// Renders probes with one template.
pub struct Prober<'a> {
    template: &'a ChatTemplate,
    variables: Map<String, Value>,
    /// Prompt of the question alone.
    before: String,
    /// Text that opens the assistant's turn.
    header: String,
}

/// The assistant's turn in a rendered conversation.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Part of the header that the history shows too.
    pub anchor: String,
    /// Text after it.
    pub body: String,
}

impl<'a> Prober<'a> {
    /// A prober with these template variables besides the tools; `None` if the template does not render a question.
    pub fn new(template: &'a ChatTemplate, mut variables: Map<String, Value>) -> Option<Self> {
        variables.insert("tools".into(), tools());
        let mut prober = Self {
            template,
            variables,
            before: String::new(),
            header: String::new(),
        };
        let question = [json!({"role": "user", "content": USER})];
        prober.before = prober.render(&question, false)?;
        let opened = prober.render(&question, true)?;
        prober.header = match opened.strip_prefix(&prober.before) {
            Some(header) => header.to_owned(),
            None => String::new(),
        };
        Some(prober)
    }

    /// Text that opens the assistant's turn, with all that the template writes for the model.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// The turn in which the assistant answers with `message`; `None` if the template refuses it.
    pub fn turn(&self, message: Value) -> Option<Turn> {
        let question = json!({"role": "user", "content": USER});
        let text = self.render(&[question, message], false)?;
        let tail = match text.strip_prefix(&self.before) {
            Some(tail) => tail,
            None => {
                let shared = super::lexemes::common_prefix(&text, &self.before);
                text.get(shared..).unwrap_or_default()
            }
        };
        let shared = super::lexemes::common_prefix(tail, &self.header);
        let (anchor, body) = tail.split_at_checked(shared)?;
        Some(Turn {
            anchor: anchor.to_owned(),
            body: body.to_owned(),
        })
    }

    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Option<String> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| serde_json::from_value(message.clone()).ok())
            .collect::<Option<_>>()?;
        let options = RenderOptions {
            add_generation_prompt,
            continue_final_message: false,
            variables: Some(&self.variables),
        };
        self.template.render(&messages, &options).ok()
    }
}

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {
            "name": name, "description": "Probes",
            "parameters": {"type": "object", "properties": {
                KEYS[0]: {"type": "string", "description": "first"},
                KEYS[1]: {"type": "string", "description": "second"},
            }, "required": [KEYS[0]]}}})
    };
    json!([tool(NAMES[0]), tool(NAMES[1])])
}

/// A message with plain content.
pub fn answer() -> Value {
    json!({"role": "assistant", "content": CONTENT})
}

/// A message with reasoning and content.
pub fn thoughtful_answer() -> Value {
    json!({"role": "assistant", "content": CONTENT, "reasoning_content": REASONING})
}

/// A message with one call for each of `arguments`.
pub fn calls(arguments: &[Value]) -> Value {
    let calls = arguments.iter().zip(NAMES).zip(IDS);
    let calls = calls.map(|((arguments, name), id)| {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    });
    json!({"role": "assistant", "content": null, "tool_calls": calls.collect::<Vec<_>>()})
}

/// Arguments with the first `count` keys and values.
pub fn arguments(count: usize) -> Value {
    let entries = KEYS.iter().zip(VALUES).take(count);
    entries
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect::<Map<_, _>>()
        .into()
}

/// Arguments with a number.
pub fn number() -> Value {
    json!({KEYS[0]: NUMBER.parse::<u32>().unwrap_or_default()})
}

/// Arguments with an object, a list and constants.
pub fn nested() -> Value {
    json!({KEYS[0]: {INNER: [true, null, VALUES[0]]}})
}
