//! Body of `/v1/completions`, and the check for fields that this version does not support.

use serde::Deserialize;
use tokenizers::Tokenizer;
use utoipa::ToSchema;

use super::request::{NUM_UNSUPPORTED_BY_BOTH, openai_request, unsupported_fields};
use crate::error::ApiError;
use crate::generation::parameters::Prompt;
use crate::generation::table::parameter_table;
use crate::http::extract::Body;
use crate::http::unsupported::UnsupportedField;
use crate::tokenizing::fill_in_middle::Markers;

/// Maximum number of generated tokens when the client gives none; OpenAI's default.
pub const DEFAULT_MAX_TOKENS: u32 = 16;

/// One prompt to continue or several, each as text or as token ids.
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

impl PromptInput {
    /// The single prompts, in order. `add_special_tokens` applies to texts.
    pub fn into_prompts(self, add_special_tokens: bool) -> Vec<Prompt> {
        let from_text = |text| Prompt::Text {
            text,
            add_special_tokens,
        };
        match self {
            Self::Text(text) => vec![from_text(text)],
            Self::Texts(texts) => texts.into_iter().map(from_text).collect(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

parameter_table! { openai_request =>
    /// A text to continue.
    pub struct CompletionRequest {
        pub prompt: PromptInput,
        /// Maximum number of tokens to generate for each choice. 0 is allowed with `echo` and returns only the prompt.
        #[schema(default = 16, minimum = 0)]
        pub max_tokens: Option<u32>,
        /// Answer with the log-probability of every token, and of this many most likely tokens at its position.
        #[schema(minimum = 0)]
        pub logprobs: Option<u32>,
        /// Begin the text with the prompt. With `logprobs`, the prompt's tokens have log-probabilities too.
        #[schema(default = false)]
        pub echo: Option<bool>,
        /// Generate this many texts for each prompt, and answer with the `n` of highest mean log-probability per token,
        /// the best first. At least `n`, which is the default. More than `n` not in streams.
        #[schema(default = 1, minimum = 1)]
        pub best_of: Option<u32>,
        /// Text after the part to write, for models whose tokenizer has tokens for filling in the middle. `prompt` must
        /// then be text.
        pub suffix: Option<String>,
    }
}

impl CompletionRequest {
    /// Refuses fields that this version does not support. `max_prompts`: maximum number of prompts in a request.
    pub fn check_supported(&self, max_prompts: usize) -> Result<(), ApiError> {
        if self
            .suffix
            .as_ref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            self.check_suffix()?;
        }
        self.check_best_of()?;
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
        let echoed = self.logprobs.filter(|_| self.echo == Some(true));
        if let (Some(echoed), Some(of_prompt)) = (echoed, self.prompt_logprobs)
            && echoed != of_prompt
        {
            return Err(ApiError::validation(
                "prompt_logprobs",
                format!(
                    "`prompt_logprobs` must equal `logprobs`, which is {echoed}, when `echo` is true. Given: {of_prompt}"
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
    /// Refuses what cannot be done with a suffix.
    fn check_suffix(&self) -> Result<(), ApiError> {
        let message = match &self.prompt {
            PromptInput::Tokens(_) | PromptInput::TokenLists(_) => {
                "`suffix` needs a `prompt` of text; put the tokens for filling in the middle into token ids"
            }
            _ if self.echo == Some(true) => "`suffix` and `echo` exclude each other",
            _ => return Ok(()),
        };
        Err(ApiError::validation("suffix", message))
    }

    /// The single prompts, in order, with what fills in their middle before `suffix`.
    pub fn take_prompts(&mut self, tokenizer: &Tokenizer) -> Result<Vec<Prompt>, ApiError> {
        let none = PromptInput::Texts(Vec::new());
        let input = std::mem::replace(&mut self.prompt, none);
        let mut prompts = input.into_prompts(self.add_special_tokens.unwrap_or(true));
        let Some(suffix) = self.suffix.as_deref().filter(|suffix| !suffix.is_empty()) else {
            return Ok(prompts);
        };
        let markers = Markers::of(tokenizer).ok_or_else(|| {
            ApiError::validation(
                "suffix",
                "`suffix` is not supported by this model: its tokenizer has no tokens for filling in the middle",
            )
        })?;
        for prompt in &mut prompts {
            if let Prompt::Text { text, .. } = prompt {
                *text = markers.prompt(text, suffix);
            }
        }
        Ok(prompts)
    }

    /// Number of texts for each prompt that the answer is chosen from; `None`: it has all of them.
    pub fn candidates(&self) -> Option<u32> {
        let n = self.n.unwrap_or(1);
        self.best_of.filter(|best_of| *best_of > n)
    }

    fn check_best_of(&self) -> Result<(), ApiError> {
        let n = self.n.unwrap_or(1);
        let message = match self.best_of.unwrap_or(n) {
            best_of if best_of < n => {
                format!("`best_of` must be >= `n`, which is {n}. Given: {best_of}")
            }
            best_of if best_of > n && self.stream == Some(true) => {
                "`best_of` greater than `n` excludes `stream`: the best texts are known at the end"
                    .to_owned()
            }
            _ => return Ok(()),
        };
        Err(ApiError::validation("best_of", message))
    }
}

impl Body for CompletionRequest {
    const UNSUPPORTED: &'static [UnsupportedField] =
        &unsupported_fields::<{ NUM_UNSUPPORTED_BY_BOTH + 1 }>(&[UnsupportedField::renamed(
            "max_completion_tokens",
            "max_tokens",
        )]);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::generation::parameters::Parameters;
    use crate::generation::values::{Seed, Stop};

    fn request(body: Value) -> CompletionRequest {
        serde_json::from_value(body).unwrap()
    }

    fn refused_field(body: Value) -> String {
        let error = request(body).check_supported(2).unwrap_err();
        error.field.unwrap_or_default()
    }

    #[test]
    fn prompts_are_text_or_tokens_one_or_several() {
        let text = |text: &str| Prompt::Text {
            text: text.into(),
            add_special_tokens: false,
        };
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (
                json!([[1, 2], [3]]),
                vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])],
            ),
        ] {
            let request = request(json!({ "prompt": prompt }));
            request.check_supported(2).unwrap();
            assert_eq!(request.prompt.into_prompts(false), expected);
        }
    }

    #[test]
    fn prompts_of_other_types_are_refused() {
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
    fn unsupported_fields_are_refused_by_name() {
        for body in [
            json!({"prompt": [1], "suffix": "b"}),
            json!({"prompt": "a", "suffix": "b", "echo": true}),
        ] {
            assert_eq!(refused_field(body), "suffix");
        }
        for (best_of, n, stream) in [(0, 1, false), (1, 2, false), (2, 1, true)] {
            let body = json!({"prompt": "a", "best_of": best_of, "n": n, "stream": stream});
            assert_eq!(refused_field(body), "best_of");
        }
        assert_eq!(
            refused_field(json!({"prompt": "a", "max_tokens": 0})),
            "max_tokens"
        );
        for accepted in [
            json!({"prompt": "a", "suffix": null, "best_of": 1}),
            json!({"prompt": "a", "n": 2, "best_of": 2, "stream": true}),
            json!({"prompt": "a", "n": 2, "best_of": 5}),
            json!({"prompt": "a", "max_tokens": 0, "echo": true}),
        ] {
            request(accepted).check_supported(2).unwrap();
        }
    }

    #[test]
    fn parameters_are_read_in_every_accepted_form() {
        let mut request = request(json!({
            "prompt": "a", "stop": ["x", "y"], "seed": -1, "n": 3, "top_k": -1, "logit_bias": {"5": -100},
            "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true, "stop_token_ids": [7],
        }));
        assert_eq!(request.n, Some(3));
        assert_eq!(request.stream_options.unwrap().include_usage, Some(true));
        let parameters = request.take_parameters().unwrap();
        let expected = Parameters {
            stop: Some(vec!["x".into(), "y".into()]),
            seed: Some(u64::MAX),
            top_k: Some(0),
            logit_bias: Some(vec![(5, -100.0)]),
            ignore_eos: Some(true),
            stop_token_ids: Some(vec![7]),
            takes_model_defaults: true,
            ..Parameters::default()
        };
        assert_eq!(parameters, expected);
        let body = json!({"prompt": "a", "stop": "x", "seed": u64::MAX});
        let request: CompletionRequest = serde_json::from_value(body).unwrap();
        assert_eq!(request.seed, Some(Seed::Unsigned(u64::MAX)));
        assert_eq!(request.stop, Some(Stop::One("x".into())));
    }

    #[test]
    fn parameters_are_neutral_when_nothing_is_given() {
        let parameters = request(json!({"prompt": "a"})).take_parameters().unwrap();
        let expected = Parameters {
            takes_model_defaults: true,
            ..Parameters::default()
        };
        assert_eq!(parameters, expected);
        assert_eq!(parameters.do_sample, None);
    }
}
