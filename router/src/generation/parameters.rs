//! Prompt and parameters of a generation request in the form that all APIs share, before validation.

use gridwork_engine::GenerationRequest;

use crate::error::Dialect;
use crate::generation::table::parameter_table;
use crate::grammar::Grammar;

/// The text or tokens to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text. `add_special_tokens`: add those of the tokenizer's configuration (chat templates write their own).
    Text {
        text: String,
        add_special_tokens: bool,
    },
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Number of characters of a text; 0 for tokens.
    pub fn num_chars(&self) -> usize {
        match self {
            Prompt::Text { text, .. } => text.chars().count(),
            Prompt::Tokens(_) => 0,
        }
    }
}

macro_rules! declare_parameters {
    ({ $($own:tt)* } $(
        $(#[$doc:meta])* $name:ident: $type:ty {
            meaning {
                $(sets $($target:ident).+ or $neutral:expr;)?
                $(model_default $model_default:ident;)?
                $(asks_for_sampling $asks_for_sampling:literal;)?
                $(check $check:expr;)*
            }
            openai $openai:tt
            tgi $tgi:tt
            transformers $transformers:tt
        }
    )*) => {
        /// Parameters of a request. `None` stands for the neutral value.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Parameters {
            $($(#[$doc])* pub $name: Option<$type>,)*
            $($own)*
        }

        impl Parameters {
            /// True if a parameter is given that makes sense only for random tokens.
            pub fn asks_for_sampling(&self) -> bool {
                false $($(|| $asks_for_sampling && self.$name.is_some())?)*
            }

            /// Takes each parameter that is not given from `other`.
            pub fn fill_from(&mut self, other: Parameters) {
                $(self.$name = self.$name.take().or(other.$name);)*
            }

            /// Writes the parameters into `request`, with the neutral values of those that are not given.
            pub fn write(self, request: &mut GenerationRequest) {
                $($(request.$($target).+ = self.$name.unwrap_or($neutral);)?)*
            }
        }
    };
}

parameter_table! { declare_parameters =>
    /// Bound for requests without `max_new_tokens`; the context's end may come before it.
    pub default_max_new_tokens: Option<u32>,
    /// Bound for requests without `min_new_tokens`; `max_new_tokens` may be below it.
    pub default_min_new_tokens: u32,
    /// Minimum number of tokens with the prompt's, for requests without `min_new_tokens`.
    pub default_min_length: u32,
    /// Stop sequences of requests without any.
    pub default_stop: Vec<String>,
    /// Lower `max_new_tokens` to what the context has left, rather than refuse it.
    pub clamps_max_new_tokens: bool,
    /// Special tokens that are in the text although others are not.
    pub shown_special_tokens: std::sync::Arc<[u32]>,
    /// Take parameters that are left out from the model's generation config.
    pub takes_model_defaults: bool,
    /// Report the log-probability of every generated token.
    pub logprobs: bool,
    /// Report the log-probabilities of the prompt's tokens.
    pub prompt_logprobs: bool,
    /// Number of most likely tokens to report beside each of the prompt's tokens.
    pub prompt_top_n: u32,
    /// Grammar that the generated text follows.
    pub grammar: Option<Grammar>,
}

impl Parameters {
    /// True if tokens are drawn at random, so that the seed matters.
    pub fn is_random(&self) -> bool {
        self.do_sample.unwrap_or(true) && self.temperature != Some(0.0)
    }
}

/// Names that an API has for the fields, so that errors name the client's own.
#[derive(Debug, Clone, Copy)]
pub struct FieldNames {
    pub dialect: Dialect,
    pub prompt: &'static str,
    pub max_new_tokens: &'static str,
    pub top_n_tokens: &'static str,
}

impl FieldNames {
    /// Name of the number of tokens to keep of a prompt.
    pub fn truncate(&self) -> &'static str {
        match self.dialect {
            Dialect::OpenAi | Dialect::Anthropic => "truncate_prompt_tokens",
            Dialect::Tgi | Dialect::Tei => "truncate",
        }
    }

    pub const TGI: FieldNames = FieldNames {
        dialect: Dialect::Tgi,
        prompt: "inputs",
        max_new_tokens: "max_new_tokens",
        top_n_tokens: "top_n_tokens",
    };
}
