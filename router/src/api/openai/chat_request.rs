//! Body of `/v1/chat/completions`, and the check for fields that this version does not support.

use serde_json::{Map, Value};

use super::generation_config::GenerationConfig;
use super::request::{NUM_UNSUPPORTED_BY_BOTH, openai_request, unsupported_fields};
use super::tools::{self, RequestTools};
use crate::chat_template::{Content, Message};
use crate::error::ApiError;
use crate::generation::table::parameter_table;
use crate::http::extract::Body;
use crate::http::unsupported::UnsupportedField;

parameter_table! { openai_request =>
    /// A conversation to answer.
    #[derive(Default)]
    pub struct ChatRequest {
        /// The conversation so far. When the last message is the assistant's, the answer continues it.
        pub messages: Vec<Message>,
        /// Maximum number of tokens to generate. Left out: the rest of the model's context.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<u32>,
        /// Older name of `max_completion_tokens`, which takes precedence.
        #[schema(minimum = 1)]
        pub max_tokens: Option<u32>,
        /// Answer with the log-probability of every token.
        #[schema(default = false)]
        pub logprobs: Option<bool>,
        /// Number of most likely tokens to report at each position, with their log-probabilities; needs `logprobs`.
        #[schema(default = 0, minimum = 0)]
        pub top_logprobs: Option<u32>,
        /// End the prompt with the opening of an assistant's message. Left out: on, unless the last message is
        /// continued.
        pub add_generation_prompt: Option<bool>,
        /// Continue the last message instead of answering it. Left out: on when that message is the assistant's, unless
        /// `add_generation_prompt` is set.
        pub continue_final_message: Option<bool>,
        /// Further variables for the model's chat template, such as `enable_thinking`.
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Variable for chat templates that know it: `low`, `medium`, `high`, …
        pub reasoning_effort: Option<String>,
        /// Functions that the model may call, shown to it by its chat template. Its calls are in `tool_calls`.
        pub tools: Option<Value>,
        /// `auto`; `none` to hide the tools from the model; `required` for at least one call; or an object that names
        /// the function to call. Calls that are required follow the schemas of `parameters`, as those of tools with
        /// `strict` always do.
        #[schema(default = "auto")]
        pub tool_choice: Option<Value>,
        /// Allow several calls in one answer.
        #[schema(default = true)]
        pub parallel_tool_calls: Option<bool>,
        /// Answer with the model's thoughts, in `reasoning_content` and `reasoning`.
        #[schema(default = true)]
        pub include_reasoning: Option<bool>,
        /// Tell the model's thoughts from the content; off: they stay in it, with the markers around them.
        #[schema(default = true)]
        pub separate_reasoning: Option<bool>,
        /// Settings of Transformers' `generate()`, as `transformers chat` sends them: an object, or the text of one.
        /// Fields of the request itself take precedence.
        pub generation_config: Option<GenerationConfig>,
        /// Older form of `tools`: the functions alone. The answer then has a call in `function_call`, at most one.
        pub functions: Option<Value>,
        /// Older form of `tool_choice`, for `functions`: `auto`, `none`, or an object with the `name` of the function to
        /// call.
        pub function_call: Option<Value>,
        /// Only `["text"]` is supported.
        pub modalities: Option<Value>,
        /// Not supported: refused.
        pub audio: Option<Value>,
    }
}

impl ChatRequest {
    /// Translates older forms of fields, and refuses fields that this version does not support.
    pub fn prepare(&mut self) -> Result<(), ApiError> {
        self.translate_functions()?;
        self.tools()?;
        if let Some(modalities) = self.modalities.as_ref().filter(|value| !value.is_null()) {
            let only_text = modalities
                .as_array()
                .is_some_and(|list| list.iter().all(|modality| modality == "text"));
            if !only_text {
                return Err(unsupported("modalities", "other than [\"text\"]"));
            }
        }
        if !is_empty(self.audio.as_ref()) {
            return Err(unsupported("audio", ""));
        }
        self.check_messages()
    }

    /// The request's tools.
    pub fn tools(&self) -> Result<RequestTools<'_>, ApiError> {
        tools::read(self.tools.as_ref(), self.tool_choice.as_ref())
    }

    /// Variables for the chat template.
    pub fn template_variables(&self) -> Map<String, Value> {
        let mut variables = Map::new();
        let definitions = self
            .tools()
            .map(|tools| tools.definitions)
            .unwrap_or_default();
        if !definitions.is_empty() {
            variables.insert("tools".into(), Value::Array(definitions.to_vec()));
        }
        if let Some(effort) = &self.reasoning_effort {
            variables.insert("reasoning_effort".into(), effort.as_str().into());
        }
        variables.extend(self.chat_template_kwargs.clone().unwrap_or_default());
        variables
    }

    fn check_messages(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::validation(
                "messages",
                "`messages` must not be empty",
            ));
        }
        for (index, message) in self.messages.iter().enumerate() {
            check_content_is_there(index, message)?;
            let Some(Content::Parts(parts)) = &message.content else {
                continue;
            };
            for (part_index, part) in parts.iter().enumerate() {
                let path = format!("messages[{index}].content[{part_index}]");
                if part.kind != "text" {
                    return Err(ApiError::validation(
                        &format!("{path}.type"),
                        format!(
                            "`{path}.type`: parts of type `{}` are not supported by this version; only `text` is",
                            part.kind
                        ),
                    ));
                }
                if part.text.is_none() {
                    return Err(ApiError::validation(
                        &format!("{path}.text"),
                        format!("`{path}` is of type `text` and must have a `text`"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends of the prompt: an opened assistant's message, or a continued last message.
    pub fn continuation(&self) -> Result<(bool, bool), ApiError> {
        let from_assistant = self
            .messages
            .last()
            .is_some_and(|message| message.role == "assistant");
        match (self.add_generation_prompt, self.continue_final_message) {
            (Some(true), Some(true)) => Err(ApiError::validation(
                "continue_final_message",
                "`continue_final_message` and `add_generation_prompt` exclude each other",
            )),
            (Some(open), goes_on) => Ok((open, goes_on.unwrap_or(from_assistant && !open))),
            (None, goes_on) => {
                let goes_on = goes_on.unwrap_or(from_assistant);
                Ok((!goes_on, goes_on))
            }
        }
    }

    /// Maximum number of generated tokens, with the name of the field that sets it.
    pub fn limit(&self) -> (&'static str, Option<u32>) {
        match (self.max_completion_tokens, self.max_tokens) {
            (None, Some(limit)) => ("max_tokens", Some(limit)),
            (limit, _) => ("max_completion_tokens", limit),
        }
    }
}

/// Refuses messages without content: the errors of templates about them are not helpful. Only an assistant's message
/// may have none, where it called tools or answered nothing.
fn check_content_is_there(index: usize, message: &Message) -> Result<(), ApiError> {
    let must_have = ["system", "developer", "user", "tool"];
    if message.content.is_some() || !must_have.contains(&message.role.as_str()) {
        return Ok(());
    }
    let path = format!("messages[{index}].content");
    Err(ApiError::validation(&path, format!("`{path}` is missing")))
}

impl Body for ChatRequest {
    const UNSUPPORTED: &'static [UnsupportedField] =
        &unsupported_fields::<{ NUM_UNSUPPORTED_BY_BOTH + 4 }>(&[
            UnsupportedField::unsupported("chat_template"),
            UnsupportedField::misplaced("documents", "chat_template_kwargs"),
            UnsupportedField::unsupported("web_search_options"),
            UnsupportedField::unsupported("echo"),
        ]);
}

/// True if a value is absent, `null`, `[]` or `{}`.
pub(super) fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

fn unsupported(field: &'static str, when: &str) -> ApiError {
    let space = if when.is_empty() { "" } else { " " };
    ApiError::validation(
        field,
        format!("`{field}`{space}{when} is not supported by this version"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(more: Value) -> ChatRequest {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        let entries = more.as_object().cloned().unwrap_or_default();
        body.as_object_mut().unwrap().extend(entries);
        serde_json::from_value(body).unwrap()
    }

    fn refused_field(more: Value) -> String {
        let error = request(more.clone()).prepare().unwrap_err();
        assert!(
            error.message.contains("not supported by this version"),
            "{more}: {}",
            error.message
        );
        error.field.unwrap_or_default()
    }

    #[test]
    fn unknown_fields_and_nulls_are_accepted() {
        let mut plain = request(json!({}));
        let more = request(json!({
            "user": "me", "store": false, "metadata": {"a": "b"}, "frobnicate": 1, "temperature": null, "stop": null,
            "stream_options": null, "max_tokens": null, "tools": null, "response_format": null, "logit_bias": null,
        }));
        assert_eq!(plain, more);
        plain.prepare().unwrap();
    }

    #[test]
    fn harmless_forms_of_unsupported_fields_are_accepted() {
        for more in [
            json!({"tools": []}),
            json!({"tools": [], "tool_choice": "auto"}),
            json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}),
            json!({"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": true}),
            json!({"functions": [], "function_call": "none"}),
            json!({"response_format": {"type": "text"}}),
            json!({"modalities": ["text"], "audio": null}),
        ] {
            request(more).prepare().unwrap();
        }
    }

    #[test]
    fn unsupported_fields_are_refused_by_name() {
        assert_eq!(
            refused_field(json!({"modalities": ["text", "audio"]})),
            "modalities"
        );
        assert_eq!(refused_field(json!({"audio": {"voice": "a"}})), "audio");
    }

    #[test]
    fn errors_about_content_parts_name_their_path() {
        for (part, field) in [
            (
                json!({"type": "image_url", "image_url": {"url": "data:"}}),
                "messages[0].content[0].type",
            ),
            (json!({"type": "text"}), "messages[0].content[0].text"),
        ] {
            let mut request = request(json!({"messages": [{"role": "user", "content": [part]}]}));
            let error = request.prepare().unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field));
        }
    }

    #[test]
    fn parts_of_other_apis_that_are_text_are_taken_as_text() {
        let part = json!([
            {"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}, "c",
        ]);
        let mut request = request(json!({"messages": [{"role": "assistant", "content": part}]}));
        request.prepare().unwrap();
        let Some(Content::Parts(parts)) = &request.messages[0].content else {
            panic!("a list stays a list");
        };
        let texts: Vec<_> = parts
            .iter()
            .map(|part| (part.kind.as_str(), part.text.as_deref()))
            .collect();
        let text = |text| ("text", Some(text));
        assert_eq!(texts, [text("a"), text("b"), text("c")]);
    }

    #[test]
    fn a_message_needs_content_unless_it_is_the_assistants() {
        let case = |message: Value| request(json!({"messages": [message]})).prepare();
        for message in [
            json!({"role": "user"}),
            json!({"role": "user", "content": null, "name": "me"}),
            json!({"role": "tool", "content": null, "tool_call_id": "1"}),
        ] {
            let error = case(message).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("messages[0].content"));
        }
        case(json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]})).unwrap();
        case(json!({"role": "assistant", "content": null, "refusal": null})).unwrap();
        case(json!({"role": "assistant"})).unwrap();
        case(json!({"role": "documents", "files": []})).unwrap();
    }

    #[test]
    fn chat_template_kwargs_override_reasoning_effort() {
        let effort = |more: Value| {
            request(more)
                .template_variables()
                .remove("reasoning_effort")
        };
        assert_eq!(effort(json!({})), None);
        assert_eq!(
            effort(json!({"reasoning_effort": "low"})),
            Some(json!("low"))
        );
        let both = json!({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}});
        assert_eq!(effort(both), Some(json!("high")));
    }

    #[test]
    fn the_template_gets_tools_unless_tool_choice_is_none() {
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let shown = |choice: Value| {
            let request = request(json!({"tools": tools, "tool_choice": choice}));
            request.template_variables().remove("tools")
        };
        assert_eq!(shown(json!(null)), Some(tools.clone()));
        assert_eq!(shown(json!("auto")), Some(tools.clone()));
        assert_eq!(shown(json!("none")), None);
    }

    #[test]
    fn an_empty_conversation_is_refused() {
        let error = request(json!({"messages": []})).prepare().unwrap_err();
        assert_eq!(error.field.as_deref(), Some("messages"));
    }

    #[test]
    fn the_last_message_is_continued_when_it_is_the_assistants() {
        let assistant =
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let case = |more: Value| request(more).continuation();
        assert_eq!(case(json!({})).unwrap(), (true, false));
        assert_eq!(case(json!({"messages": assistant})).unwrap(), (false, true));
        assert_eq!(
            case(json!({"messages": assistant, "add_generation_prompt": true})).unwrap(),
            (true, false)
        );
        assert_eq!(
            case(json!({"messages": assistant, "continue_final_message": false})).unwrap(),
            (true, false)
        );
        assert_eq!(
            case(json!({"add_generation_prompt": false})).unwrap(),
            (false, false)
        );
        let both = case(json!({"add_generation_prompt": true, "continue_final_message": true}));
        assert_eq!(
            both.unwrap_err().field.as_deref(),
            Some("continue_final_message")
        );
    }

    #[test]
    fn max_completion_tokens_overrides_max_tokens() {
        assert_eq!(request(json!({})).limit(), ("max_completion_tokens", None));
        assert_eq!(
            request(json!({"max_tokens": 3})).limit(),
            ("max_tokens", Some(3))
        );
        assert_eq!(
            request(json!({"max_tokens": 3, "max_completion_tokens": 4})).limit(),
            ("max_completion_tokens", Some(4))
        );
    }

    #[test]
    fn wrong_types_are_refused() {
        for more in [
            json!({"messages": "hi"}),
            json!({"messages": [{"content": "no role"}]}),
            json!({"messages": [{"role": "user", "content": 5}]}),
            json!({"stop": 5}),
            json!({"temperature": "hot"}),
            json!({"n": -1}),
            json!({"seed": 1.5}),
            json!({"max_tokens": -1}),
            json!({"logit_bias": [1]}),
        ] {
            let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
            let entries = more.as_object().cloned().unwrap_or_default();
            body.as_object_mut().unwrap().extend(entries);
            assert!(
                serde_json::from_value::<ChatRequest>(body).is_err(),
                "{more}"
            );
        }
    }
}
