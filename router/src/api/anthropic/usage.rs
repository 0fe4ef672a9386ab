//! Numbers of tokens of a request, as Anthropic's API counts them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::request::{Block, MessagesRequest};
use crate::api::conversation::answer::Tokens;
use crate::api::conversation::text_or_list::TextOrList;

/// Number of tokens of a request. All tokens of the prompt are those read from the cache, written to it, and the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessagesUsage {
    /// Number of prompt tokens that were neither read from the cache nor count as written to it. At the beginning of a
    /// stream, of all prompt tokens.
    pub input_tokens: u64,
    /// Number of prompt tokens that were written to the cache, for requests with `cache_control`. Those of others are
    /// cached just the same.
    pub cache_creation_input_tokens: u64,
    /// Number of prompt tokens whose keys and values were in the cache already.
    pub cache_read_input_tokens: u64,
    /// `cache_creation_input_tokens` by the time that the request asks for. Here the oldest make room, whatever it asks.
    pub cache_creation: CacheCreation,
    pub output_tokens: u64,
    pub output_tokens_details: OutputTokensDetails,
    #[schema(example = "standard")]
    pub service_tier: ServiceTier,
}

/// Tokens that were written to the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = MessagesCacheCreation)]
pub struct CacheCreation {
    pub ephemeral_5m_input_tokens: u64,
    pub ephemeral_1h_input_tokens: u64,
}

/// Details of `output_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = MessagesOutputTokensDetails)]
pub struct OutputTokensDetails {
    /// Number of tokens of reasoning.
    pub thinking_tokens: u64,
}

/// Tier that served a request. There is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceTier {
    #[default]
    Standard,
}

/// Marks by which a request asks to cache its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMarks {
    None,
    FiveMinutes,
    OneHour,
}

impl CacheMarks {
    /// The last mark of a request.
    pub fn of(request: &MessagesRequest) -> Self {
        let tools = request.tools.iter().flatten();
        let messages = request.messages.iter();
        let contents = request
            .system
            .iter()
            .chain(messages.filter_map(|message| message.content.as_ref()));
        let marks = tools
            .map(|tool| &tool.cache_control)
            .chain(contents.flat_map(blocks).map(|block| &block.cache_control))
            .chain([&request.cache_control]);
        match marks.flatten().last() {
            None => Self::None,
            Some(mark) if mark.get("ttl").and_then(Value::as_str) == Some("1h") => Self::OneHour,
            Some(_) => Self::FiveMinutes,
        }
    }
}

/// The blocks of a content, and those in them.
fn blocks(content: &TextOrList<Block>) -> Vec<&Block> {
    match content {
        TextOrList::Text(_) => Vec::new(),
        TextOrList::List(list) => {
            let all = list.iter().flat_map(|block| {
                let within = block.content.iter().flat_map(blocks);
                within.chain([block]).collect::<Vec<_>>()
            });
            all.collect()
        }
    }
}

/// How prompts are cached.
#[derive(Debug, Clone, Copy)]
pub struct Caching {
    pub marks: CacheMarks,
    /// Number of tokens of a cached block; 0: nothing is cached.
    pub block_tokens: u64,
}

impl MessagesUsage {
    /// Usage of a whole answer.
    pub fn new(tokens: Tokens, caching: Caching) -> Self {
        let whole_blocks = match (caching.marks, caching.block_tokens) {
            (CacheMarks::None, _) | (_, 0) => 0,
            (_, block) => tokens.prompt / block * block,
        };
        let written = whole_blocks.saturating_sub(tokens.cached);
        let mut creation = CacheCreation::default();
        match caching.marks {
            CacheMarks::OneHour => creation.ephemeral_1h_input_tokens = written,
            CacheMarks::FiveMinutes | CacheMarks::None => {
                creation.ephemeral_5m_input_tokens = written;
            }
        }
        Self {
            input_tokens: tokens.prompt.saturating_sub(tokens.cached + written),
            cache_creation_input_tokens: written,
            cache_read_input_tokens: tokens.cached,
            cache_creation: creation,
            output_tokens: tokens.generated,
            output_tokens_details: OutputTokensDetails {
                thinking_tokens: tokens.reasoning,
            },
            service_tier: ServiceTier::Standard,
        }
    }

    /// Usage at the beginning of a stream, when no one knows what was cached.
    pub fn at_start(prompt_tokens: u64) -> Self {
        Self {
            input_tokens: prompt_tokens,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn marks(request: Value) -> CacheMarks {
        let request: MessagesRequest = serde_json::from_value(request).expect("a request");
        CacheMarks::of(&request)
    }

    #[test]
    fn the_last_mark_of_a_request_counts() {
        let (short, long) = (
            json!({"type": "ephemeral"}),
            json!({"type": "ephemeral", "ttl": "1h"}),
        );
        let text = |mark: &Value| json!([{"type": "text", "text": "a", "cache_control": mark}]);
        let message = |content: Value| json!({"role": "user", "content": content});
        for (request, expected) in [
            (json!({"messages": [message(json!("a"))]}), CacheMarks::None),
            (
                json!({"messages": [message(text(&json!(null)))]}),
                CacheMarks::None,
            ),
            (
                json!({"messages": [message(text(&short))]}),
                CacheMarks::FiveMinutes,
            ),
            (
                json!({"messages": [], "cache_control": long}),
                CacheMarks::OneHour,
            ),
            (
                json!({"messages": [message(text(&short))], "system": text(&long)}),
                CacheMarks::FiveMinutes,
            ),
            (
                json!({"messages": [message(json!("a"))], "system": text(&long)}),
                CacheMarks::OneHour,
            ),
            (
                json!({"messages": [], "tools": [{"name": "f", "cache_control": short}]}),
                CacheMarks::FiveMinutes,
            ),
            (
                json!({"messages": [message(json!([{"type": "tool_result", "content": text(&long)}]))]}),
                CacheMarks::OneHour,
            ),
        ] {
            assert_eq!(marks(request.clone()), expected, "{request}");
        }
    }

    #[test]
    fn the_parts_of_a_prompt_add_up() {
        let tokens = Tokens {
            prompt: 100,
            cached: 32,
            generated: 9,
            reasoning: 4,
        };
        let usage = |marks, block_tokens| {
            let usage = MessagesUsage::new(
                tokens,
                Caching {
                    marks,
                    block_tokens,
                },
            );
            let CacheCreation {
                ephemeral_5m_input_tokens: short,
                ephemeral_1h_input_tokens: long,
            } = usage.cache_creation;
            let written = usage.cache_creation_input_tokens;
            assert_eq!(written, short + long);
            assert_eq!(
                usage.input_tokens + written + usage.cache_read_input_tokens,
                100
            );
            assert_eq!(
                (
                    usage.output_tokens,
                    usage.output_tokens_details.thinking_tokens
                ),
                (9, 4)
            );
            (usage.input_tokens, short, long)
        };
        assert_eq!(usage(CacheMarks::None, 16), (68, 0, 0));
        assert_eq!(usage(CacheMarks::FiveMinutes, 16), (4, 64, 0));
        assert_eq!(usage(CacheMarks::OneHour, 16), (4, 0, 64));
        assert_eq!(usage(CacheMarks::OneHour, 0), (68, 0, 0));
    }
}
