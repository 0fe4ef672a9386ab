//! Fields that both generating routes of this API accept, as clients send them.
//!
//! Optional fields may also be `null`. Unknown fields are ignored, as OpenAI's clients expect. Fields that other
//! servers read and this one does not are refused when they would change the answer.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::generation::table::UNSUPPORTED;
use crate::http::unsupported::UnsupportedField;

/// Parts of a stream besides the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Send a last chunk with empty `choices` and the `usage` of the whole request.
    #[serde(default)]
    #[schema(default = false, nullable = true)]
    pub include_usage: Option<bool>,
    /// Send the `usage` so far with every chunk.
    #[serde(default)]
    #[schema(default = false, nullable = true)]
    pub continuous_usage_stats: Option<bool>,
}

/// Number of choices for each prompt, from the request's `n`, or from another `field`. The choices of all prompts
/// together must fit into `max_concurrent` requests.
pub fn num_choices(
    field: &str,
    n: Option<u32>,
    num_prompts: usize,
    max_n: u32,
    max_concurrent: usize,
) -> Result<u32, ApiError> {
    let n = n.unwrap_or(1);
    if !(1..=max_n).contains(&n) {
        return Err(ApiError::validation(
            field,
            format!("`{field}` must be >= 1 and <= {max_n} (--max-n). Given: {n}"),
        ));
    }
    if (n as usize).saturating_mul(num_prompts) > max_concurrent {
        return Err(ApiError::validation(
            field,
            format!(
                "`{field}` = {n} for {num_prompts} prompt(s) is more than the {max_concurrent} requests that this server \
                 takes at once"
            ),
        ));
    }
    Ok(n)
}

impl StreamOptions {
    /// The options of a request; refused when there is no stream.
    pub fn of(stream: bool, options: Option<Self>) -> Result<Self, ApiError> {
        match options {
            Some(_) if !stream => Err(ApiError::validation(
                "stream_options",
                "`stream_options` is only allowed when `stream` is true",
            )),
            options => Ok(options.unwrap_or_default()),
        }
    }
}

/// Fields of other servers that a route does not read: `own`, and those that neither route reads. `N` is their number.
pub const fn unsupported_fields<const N: usize>(own: &[UnsupportedField]) -> [UnsupportedField; N] {
    let mut all = [UnsupportedField::renamed("max_new_tokens", "max_tokens"); N];
    assert!(N == NUM_UNSUPPORTED_BY_BOTH + own.len());
    let mut i = 0;
    while i < UNSUPPORTED.len() {
        all[i] = UnsupportedField::unsupported(UNSUPPORTED[i]);
        i += 1;
    }
    let mut i = 0;
    while i < own.len() {
        all[UNSUPPORTED.len() + i] = own[i];
        i += 1;
    }
    all
}

/// Number of fields of other servers that neither route reads.
pub const NUM_UNSUPPORTED_BY_BOTH: usize = UNSUPPORTED.len() + 1;

/// Declares a request: its own fields, those that both generating routes have, and those of the table of parameters.
/// (`#[serde(flatten)]` would do the same, but errors could then no longer name the field.)
macro_rules! openai_request {
    (
        { $(#[$attribute:meta])* pub struct $request:ident { $($own:tt)* } }
        $(
            $(#[$doc:meta])* $name:ident: $type:ty {
                meaning $meaning:tt
                openai { $($(#[$field_attribute:meta])* $field:ident: $field_type:ty $(=> $conversion:expr)?;)? }
                tgi $tgi:tt
                transformers $transformers:tt
            }
        )*
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, utoipa::ToSchema)]
        pub struct $request {
            $($own)*
            /// Name of the model. Any name is accepted, because one model is served.
            pub model: Option<String>,
            /// Answer with server-sent events: a chunk for each piece of text, and `[DONE]` at the end.
            #[schema(default = false)]
            pub stream: Option<bool>,
            /// Parts of a stream besides the text.
            #[serde(default, deserialize_with = "crate::http::extract::object")]
            pub stream_options: Option<$crate::api::openai::request::StreamOptions>,
            /// Number of choices to generate for each prompt, with different seeds.
            #[schema(default = 1, minimum = 1, maximum = 128)]
            pub n: Option<u32>,
            /// Answer with the log-probability of every token of the prompt, and of this many most likely tokens at its
            /// position. Not in streams.
            #[schema(minimum = 0)]
            pub prompt_logprobs: Option<u32>,
            /// Answer with the ids of the prompt's and the generated tokens too, and with `logprobs` with the
            /// log-probabilities by id.
            #[schema(default = false)]
            pub return_token_ids: Option<bool>,
            /// Write the tokenizer's special tokens before the prompt. On for completions; off for chats, whose
            /// template writes them.
            pub add_special_tokens: Option<bool>,
            /// Form of the answer: `{"type": "json_schema", "json_schema": {"schema": …}}`, `{"type": "json_object"}`, or
            /// one of the types `regex`, `choice` and `grammar` with a `value`, or `structural_tag`. The schema is always
            /// enforced, `strict` or not. `{"type": "text"}` is any text. At most one of the fields for a grammar may be
            /// given; what cannot be enforced exactly is refused.
            #[schema(value_type = Option<Object>)]
            pub response_format: Option<serde_json::Value>,
            /// A grammar as vLLM has it: one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`,
            /// and `whitespace_pattern` or `disable_any_whitespace`.
            #[schema(value_type = Option<Object>)]
            pub structured_outputs: Option<serde_json::Value>,
            /// JSON schema of the answer, as an object or its text.
            pub guided_json: Option<serde_json::Value>,
            /// Regular expression that matches the whole answer, in the syntax of Rust's `regex`.
            #[schema(value_type = Option<String>)]
            pub guided_regex: Option<serde_json::Value>,
            /// Texts of which the answer is one.
            #[schema(value_type = Option<Vec<String>>)]
            pub guided_choice: Option<serde_json::Value>,
            /// Grammar of the answer, in Lark, or in EBNF with `::=`.
            #[schema(value_type = Option<String>)]
            pub guided_grammar: Option<serde_json::Value>,
            /// Regular expression of the whitespace between the parts of a JSON answer. Left out: a space, or a line
            /// break with an indentation.
            #[schema(value_type = Option<String>)]
            pub guided_whitespace_pattern: Option<serde_json::Value>,
            /// Same as `guided_json`, as SGLang has it.
            pub json_schema: Option<serde_json::Value>,
            /// Same as `guided_regex`, as SGLang has it.
            #[schema(value_type = Option<String>)]
            pub regex: Option<serde_json::Value>,
            /// Same as `guided_grammar`, as SGLang has it.
            #[schema(value_type = Option<String>)]
            pub ebnf: Option<serde_json::Value>,
            /// Free text with tagged parts that follow a grammar, in either of SGLang's forms.
            pub structural_tag: Option<serde_json::Value>,
            /// Same as `guided_grammar`, as llama.cpp has it; or `{"type", "value"}`, as text-generation-inference has it.
            pub grammar: Option<serde_json::Value>,
            /// `json` or a JSON schema, as Ollama has it.
            pub format: Option<serde_json::Value>,
            $($(
                $(#[$field_attribute])*
                pub $field: Option<$field_type>,
            )?)*
        }

        impl $request {
            /// Takes the parameters out of the request's fields.
            pub fn take_parameters(
                &mut self,
            ) -> Result<$crate::generation::parameters::Parameters, $crate::error::ApiError> {
                let grammar = self.take_grammar()?;
                Ok($crate::generation::parameters::Parameters {
                    takes_model_defaults: true,
                    grammar,
                    $($($name: self.$field.take()$(.map($conversion).transpose()?)?,)?)*
                    ..Default::default()
                })
            }

            /// Takes the grammar out of whichever field has one.
            fn take_grammar(
                &mut self,
            ) -> Result<Option<$crate::grammar::Grammar>, $crate::error::ApiError> {
                let grammar = $crate::api::openai::request::spelled_grammar!(self:
                    response_format, structured_outputs, guided_json, guided_regex, guided_choice, guided_grammar,
                    json_schema, regex, ebnf, structural_tag, grammar, format
                )?;
                let pattern = self.guided_whitespace_pattern.take();
                match (grammar, pattern.filter(|pattern| !pattern.is_null())) {
                    (Some(grammar), Some(pattern)) => {
                        let field = "guided_whitespace_pattern";
                        $crate::grammar::spelling::whitespace(grammar, &pattern, field).map(Some)
                    }
                    (grammar, _) => Ok(grammar),
                }
            }
        }
    };
}
pub(crate) use openai_request;

/// Reads the grammar in the fields of a request, which are then empty.
macro_rules! spelled_grammar {
    ($request:ident: $($field:ident),*) => {{
        let fields = [$((stringify!($field), $request.$field.take())),*];
        let given = fields.iter().map(|(name, value)| (*name, value.as_ref()));
        $crate::grammar::spelling::read(given)
    }};
}
pub(crate) use spelled_grammar;

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Option<String> {
        result.unwrap_err().field
    }

    #[test]
    fn n_is_bounded_by_what_can_run_at_once() {
        assert_eq!(num_choices("n", None, 1, 128, 1).unwrap(), 1);
        assert_eq!(num_choices("n", Some(4), 2, 128, 8).unwrap(), 4);
        for (n, prompts) in [(0, 1), (129, 1), (5, 2)] {
            assert_eq!(
                field(num_choices("n", Some(n), prompts, 128, 8)).as_deref(),
                Some("n")
            );
        }
        let error = num_choices("best_of", Some(3), 1, 2, 8).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("best_of"));
        assert!(error.message.contains("--max-n"), "{error}");
    }

    #[test]
    fn stream_options_need_a_stream() {
        let given = Some(StreamOptions::default());
        StreamOptions::of(true, given).unwrap();
        assert_eq!(
            field(StreamOptions::of(false, given)).as_deref(),
            Some("stream_options")
        );
    }
}
