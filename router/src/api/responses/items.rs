//! Items of a response's output.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tools::{Called, Tools, custom_input};
use super::translation::packed;
use crate::api::conversation::blocks::Block;
use crate::api::openai::response::TokenLogprob;

/// An item of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// A message of the assistant.
    Message {
        id: String,
        status: ItemStatus,
        #[schema(example = "assistant")]
        role: String,
        content: Vec<OutputPart>,
    },
    /// Reasoning before the answer.
    Reasoning {
        id: String,
        status: ItemStatus,
        /// Always empty: the reasoning is given whole, in `content`.
        summary: Vec<OutputPart>,
        content: Vec<OutputPart>,
        /// The reasoning for clients that only pass it on, when `include` names it. It is not secret.
        encrypted_content: Option<String>,
    },
    /// Call of a function.
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        /// Namespace of the function, where it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// JSON text, as the model wrote it.
        arguments: String,
        status: ItemStatus,
    },
    /// Call of a custom tool.
    CustomToolCall {
        id: String,
        call_id: String,
        name: String,
        input: String,
        status: ItemStatus,
    },
}

/// A part of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    OutputText {
        text: String,
        /// Always empty.
        annotations: Vec<String>,
        /// One entry for each token, when requested.
        logprobs: Vec<TokenLogprob>,
    },
    ReasoningText {
        text: String,
    },
}

/// State of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    InProgress,
    Completed,
    /// The maximum number of tokens ended the answer within this item.
    Incomplete,
}

impl OutputItem {
    pub fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::CustomToolCall { id, .. } => id,
        }
    }

    pub fn set_status(&mut self, new: ItemStatus) {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::CustomToolCall { status, .. } => *status = new,
        }
    }
}

impl OutputPart {
    /// Text of a message.
    pub fn text(text: &str, logprobs: &[TokenLogprob]) -> Self {
        Self::OutputText {
            text: text.to_owned(),
            annotations: Vec::new(),
            logprobs: logprobs.to_vec(),
        }
    }

    /// Text of a reasoning.
    pub fn reasoning(text: &str) -> Self {
        Self::ReasoningText {
            text: text.to_owned(),
        }
    }
}

/// Makes items of blocks.
#[derive(Debug)]
pub struct ItemMaker {
    pub tools: Tools,
    /// Give the reasoning as `encrypted_content`, too.
    pub packs_reasoning: bool,
}

impl ItemMaker {
    /// A new id for the item of `block`.
    pub fn id(&self, block: &Block) -> String {
        let prefix = match block {
            Block::Text { .. } => "msg",
            Block::Reasoning(_) => "rs",
            Block::Call(call) => match self.tools.called(&call.name) {
                Called::Function { .. } => "fc",
                Called::Custom(_) => "ctc",
            },
        };
        format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
    }

    /// The item of a block. An item in progress has no content yet.
    pub fn item(&self, block: &Block, id: String, status: ItemStatus) -> OutputItem {
        let begun = status == ItemStatus::InProgress;
        match block {
            Block::Text { text, logprobs } => OutputItem::Message {
                id,
                status,
                role: "assistant".into(),
                content: match begun {
                    true => Vec::new(),
                    false => vec![OutputPart::text(text, logprobs)],
                },
            },
            Block::Reasoning(text) => OutputItem::Reasoning {
                id,
                status,
                summary: Vec::new(),
                content: match begun {
                    true => Vec::new(),
                    false => vec![OutputPart::reasoning(text)],
                },
                encrypted_content: (self.packs_reasoning && !begun).then(|| packed(text)),
            },
            Block::Call(call) => match self.tools.called(&call.name) {
                Called::Function { namespace, name } => OutputItem::FunctionCall {
                    id,
                    call_id: call.id.clone(),
                    name: name.to_owned(),
                    namespace: namespace.map(str::to_owned),
                    arguments: call.arguments.clone(),
                    status,
                },
                Called::Custom(name) => OutputItem::CustomToolCall {
                    id,
                    call_id: call.id.clone(),
                    name: name.to_owned(),
                    input: match begun {
                        true => String::new(),
                        false => custom_input(&call.arguments),
                    },
                    status,
                },
            },
        }
    }
}
