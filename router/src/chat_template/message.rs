//! One message of a conversation, as clients send it and as templates see it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A message of the conversation.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or any other role that the model's chat template knows.
    #[schema(example = "user")]
    pub role: String,
    /// What was said: a string, or a list of parts of type `text`.
    #[serde(default)]
    pub content: Option<Content>,
    /// Everything else (`name`, `reasoning_content`, `tool_call_id`, …), handed to the chat template as it is.
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// The text that a continuation of this message would go on from.
    pub(super) fn last_text_mut(&mut self) -> Option<&mut String> {
        match self.content.as_mut()? {
            Content::Text(text) => Some(text),
            Content::Parts(parts) => parts.iter_mut().rev().find_map(|part| part.text.as_mut()),
        }
    }
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
pub struct ContentPart {
    /// `text`; other types are refused.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: String,
    /// The text of a part of type `text`.
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
