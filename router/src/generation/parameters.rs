//! A generation request as every API means it, before it is validated.

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// `add_special_tokens`: as the tokenizer's configuration has it (a chat template brings its own).
    Text {
        text: String,
        add_special_tokens: bool,
    },
    Tokens(Vec<u32>),
}

/// How to continue it. `None`: the neutral value.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// `None`: sample unless `temperature` is 0.
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: a random one.
    pub seed: Option<u64>,
    /// `None`: what is left of the context.
    pub max_new_tokens: Option<u32>,
    /// Bound for requests without `max_new_tokens`, which gives way to the context's end.
    pub default_max_new_tokens: Option<u32>,
    /// Take what is left out from the model's generation config.
    pub takes_model_defaults: bool,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    /// Whether the text ends with the stop string rather than before it.
    pub include_stop: bool,
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    /// Keep only so many tokens at the prompt's end.
    pub truncate: Option<usize>,
    /// Report the log-probability of every generated token.
    pub logprobs: bool,
    /// And of so many most likely ones beside it.
    pub top_n_tokens: u32,
    /// And of the prompt's tokens.
    pub prompt_logprobs: bool,
    /// And of so many most likely ones beside each of these.
    pub prompt_top_n: u32,
    /// Share cached keys and values only with requests that give the same.
    pub cache_salt: Option<String>,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            do_sample: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            logit_bias: Vec::new(),
            seed: None,
            max_new_tokens: None,
            default_max_new_tokens: None,
            takes_model_defaults: false,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop: false,
            ignore_eos: false,
            skip_special_tokens: true,
            truncate: None,
            logprobs: false,
            top_n_tokens: 0,
            prompt_logprobs: false,
            prompt_top_n: 0,
            cache_salt: None,
        }
    }
}

/// What an API calls the fields, so that errors name the client's own.
#[derive(Debug, Clone, Copy)]
pub struct FieldNames {
    pub prompt: &'static str,
    pub max_new_tokens: &'static str,
    pub top_n_tokens: &'static str,
}

impl FieldNames {
    pub const TGI: FieldNames = FieldNames {
        prompt: "inputs",
        max_new_tokens: "max_new_tokens",
        top_n_tokens: "top_n_tokens",
    };
}
