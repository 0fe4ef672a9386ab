//! A message of a conversation, as clients send it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A message of the conversation.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or any other role that the model's chat template knows.
    #[schema(example = "user")]
    pub role: String,
    /// Text of the message: a string, or a list of parts of type `text`. Optional in an assistant's message.
    #[serde(default)]
    pub content: Option<Content>,
    /// All other fields (`name`, `reasoning_content`, `tool_call_id`, …). The chat template gets those that are not
    /// null.
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Map<String, Value>,
}

/// Content of a message.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string or a list of content parts, each an object with a `type`"
)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, in order.
    Parts(Vec<ContentPart>),
}

/// A part of a message's content.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(from = "SentPart")]
pub struct ContentPart {
    /// `text`, or another API's name for it: `input_text`, `output_text` and `refusal`. Others are refused.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: String,
    /// Text of the part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl ContentPart {
    /// A part of type `text`.
    pub fn text(text: String) -> Self {
        Self {
            kind: "text".into(),
            text: Some(text),
        }
    }
}

/// The forms in which clients send a part.
#[derive(Deserialize)]
#[serde(untagged)]
enum SentPart {
    /// A text alone.
    Text(String),
    Part {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        text: Option<String>,
        /// Text of a part of type `refusal`.
        #[serde(default)]
        refusal: Option<String>,
    },
}

impl From<SentPart> for ContentPart {
    fn from(part: SentPart) -> Self {
        match part {
            SentPart::Text(text) => Self::text(text),
            SentPart::Part {
                kind,
                text,
                refusal,
            } => match kind.as_str() {
                "input_text" | "output_text" => Self {
                    kind: "text".into(),
                    text,
                },
                "refusal" => Self {
                    kind: "text".into(),
                    text: refusal.or(text),
                },
                _ => Self { kind, text },
            },
        }
    }
}
