//! Body of `/v1/completions`, and which of it this version serves.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::request::{UNSUPPORTED_BY_BOTH, request};
use crate::error::ApiError;
use crate::http::extract::Body;
use crate::http::unsupported::UnsupportedField;

/// Generated tokens when the client gives no limit, as OpenAI has it.
pub const DEFAULT_MAX_TOKENS: u32 = 16;

/// What to go on with: one prompt or several, each as text or as token ids.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub enum PromptInput {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// The token ids of one prompt, used as they are.
    Tokens(Vec<u32>),
    /// The token ids of several prompts.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt out of a [`PromptInput`].
#[derive(Debug, Clone, PartialEq)]
pub enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl PromptInput {
    /// The single prompts, in order.
    pub fn into_prompts(self) -> Vec<OnePrompt> {
        match self {
            Self::Text(text) => vec![OnePrompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
            Self::Tokens(tokens) => vec![OnePrompt::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
        }
    }
}

request! {
    /// A text to go on with.
    pub struct CompletionRequest {
        pub prompt: PromptInput,
        /// Most tokens to generate for each choice. 0 is allowed with `echo`: then only the prompt comes back.
        #[schema(default = 16, minimum = 0)]
        pub max_tokens: Option<u32>,
        /// Answer with the log-probability of every token, and of so many most likely tokens at its position.
        #[schema(minimum = 0)]
        pub logprobs: Option<u32>,
        /// Begin the text with the prompt; with `logprobs`, the prompt's tokens get theirs too.
        #[schema(default = false)]
        pub echo: Option<bool>,
        /// The same as `n`: this version generates no texts that it does not return.
        #[schema(default = 1, minimum = 1)]
        pub best_of: Option<u32>,
        /// Not supported: put it into the prompt, in the form that the model was trained on.
        pub suffix: Option<Value>,
        /// Only `{"type": "text"}` is supported by this version.
        pub response_format: Option<Value>,
    }
}

impl CompletionRequest {
    /// Refuses what this version cannot do, naming the field. `max_prompts`: most prompts in one request.
    pub fn check_supported(&self, max_prompts: usize) -> Result<(), ApiError> {
        if let Some(suffix) = &self.suffix
            && !suffix.is_null()
            && suffix != ""
        {
            return Err(ApiError::validation(
                "suffix",
                "`suffix` is not supported and can be achieved by preprocessing the prompt",
            ));
        }
        self.check_best_of()?;
        if let Some(format) = &self.response_format
            && !format.is_null()
            && format.get("type").is_none_or(|kind| kind != "text")
        {
            return Err(ApiError::validation(
                "response_format",
                "`response_format` other than {\"type\": \"text\"} is not supported by this version",
            ));
        }
        let count = match &self.prompt {
            PromptInput::Texts(texts) => texts.len(),
            PromptInput::TokenLists(lists) => lists.len(),
            PromptInput::Text(_) => 1,
            PromptInput::Tokens(tokens) => usize::from(!tokens.is_empty()),
        };
        if count == 0 {
            return Err(ApiError::validation(
                "prompt",
                "`prompt` must not be an empty array",
            ));
        }
        if count > max_prompts {
            return Err(ApiError::validation(
                "prompt",
                format!(
                    "`prompt` has {count} prompts, which exceeds the maximum allowed batch size of {max_prompts}"
                ),
            ));
        }
        if self.max_tokens == Some(0) && !self.echo.unwrap_or(false) {
            return Err(ApiError::validation(
                "max_tokens",
                "`max_tokens` must be strictly positive, unless `echo` is true",
            ));
        }
        Ok(())
    }
}

impl CompletionRequest {
    fn check_best_of(&self) -> Result<(), ApiError> {
        let n = self.n.unwrap_or(1);
        let message = match self.best_of.unwrap_or(n) {
            best_of if best_of < n => format!("`best_of` must be >= `n`. Given: {best_of}"),
            best_of if best_of > n => {
                "`best_of` greater than `n` is not supported by this version".to_owned()
            }
            _ => return Ok(()),
        };
        Err(ApiError::validation("best_of", message))
    }
}

impl Body for CompletionRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &{
        let mut all = [UnsupportedField::renamed("max_completion_tokens", "max_tokens"); 24];
        all.split_at_mut(1).1.copy_from_slice(&UNSUPPORTED_BY_BOTH);
        all
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(body: Value) -> CompletionRequest {
        serde_json::from_value(body).unwrap()
    }

    fn refused_field(body: Value) -> String {
        let error = request(body).check_supported(2).unwrap_err();
        error.field.unwrap_or_default()
    }

    #[test]
    fn a_prompt_may_be_text_or_tokens_one_or_several() {
        let text = |text: &str| OnePrompt::Text(text.into());
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![OnePrompt::Tokens(vec![1, 2])]),
            (
                json!([[1, 2], [3]]),
                vec![OnePrompt::Tokens(vec![1, 2]), OnePrompt::Tokens(vec![3])],
            ),
        ] {
            let request = request(json!({ "prompt": prompt }));
            request.check_supported(2).unwrap();
            assert_eq!(request.prompt.into_prompts(), expected);
        }
    }

    #[test]
    fn other_prompts_are_refused() {
        for prompt in [
            json!(5),
            json!(["a", 1]),
            json!([1, "a"]),
            json!([-1]),
            json!({"a": 1}),
            json!(null),
        ] {
            let body = json!({ "prompt": prompt });
            assert!(
                serde_json::from_value::<CompletionRequest>(body).is_err(),
                "{prompt}"
            );
        }
        assert!(serde_json::from_value::<CompletionRequest>(json!({})).is_err());
    }

    #[test]
    fn too_many_prompts_and_none_are_refused() {
        assert_eq!(refused_field(json!({"prompt": []})), "prompt");
        assert_eq!(refused_field(json!({"prompt": ["a", "b", "c"]})), "prompt");
        assert_eq!(refused_field(json!({"prompt": [[1], [2], [3]]})), "prompt");
    }

    #[test]
    fn what_this_version_cannot_do_is_refused_by_name() {
        assert_eq!(
            refused_field(json!({"prompt": "a", "suffix": "b"})),
            "suffix"
        );
        assert_eq!(
            refused_field(json!({"prompt": "a", "best_of": 2})),
            "best_of"
        );
        for (best_of, n) in [(0, 1), (1, 2)] {
            let body = json!({"prompt": "a", "best_of": best_of, "n": n});
            assert_eq!(refused_field(body), "best_of");
        }
        assert_eq!(
            refused_field(json!({"prompt": "a", "max_tokens": 0})),
            "max_tokens"
        );
        assert_eq!(
            refused_field(json!({"prompt": "a", "response_format": {"type": "json_object"}})),
            "response_format"
        );
        for accepted in [
            json!({"prompt": "a", "suffix": null, "best_of": 1}),
            json!({"prompt": "a", "n": 2, "best_of": 2}),
            json!({"prompt": "a", "max_tokens": 0, "echo": true}),
        ] {
            request(accepted).check_supported(2).unwrap();
        }
    }

    #[test]
    fn shared_fields_take_every_accepted_form() {
        let mut request = request(json!({
            "prompt": "a", "stop": ["x", "y"], "seed": -1, "n": 3, "top_k": -1, "logit_bias": {"5": -100},
            "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true, "stop_token_ids": [7],
        }));
        let shared = request.take_shared();
        assert_eq!(Vec::<String>::from(shared.stop.unwrap()), ["x", "y"]);
        assert_eq!(u64::from(shared.seed.unwrap()), u64::MAX);
        assert_eq!(shared.n, Some(3));
        assert_eq!(shared.top_k, Some(-1));
        assert_eq!(shared.logit_bias.unwrap()["5"], -100.0);
        assert_eq!(shared.stream_options.unwrap().include_usage, Some(true));
        assert_eq!(shared.stop_token_ids, Some(vec![7]));
        let request: CompletionRequest =
            serde_json::from_value(json!({"prompt": "a", "stop": "x", "seed": u64::MAX})).unwrap();
        assert_eq!(
            request.seed,
            Some(super::super::request::Seed::Unsigned(u64::MAX))
        );
        assert_eq!(
            request.stop,
            Some(super::super::request::Stop::One("x".into()))
        );
    }
}
