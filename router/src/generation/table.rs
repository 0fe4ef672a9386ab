//! The table of generation parameters: each one's type, bounds, neutral value, and its spelling in every API.
//!
//! The request types, their OpenAPI documents, the bounds checks, the model's defaults and the engine's request are
//! generated from it. To add a parameter, add a row here, a field to `SamplingParameters` of the proto, and its effect
//! in the engine or the shard.

/// Expands `callback! { { arguments } rows }`. A row is
///
/// ```text
/// /// What the parameter does, for maintainers.
/// name: Type {
///     meaning {
///         sets target or neutral;     // field of the engine's request, and its value when the client gives none
///         model_default name;         // the model's generation config has a default of this name (OpenAI's API)
///         asks_for_sampling true;     // setting it means that the client wants random tokens
///         check expression;           // refuses a value; see the checks in `bounds.rs`
///     }
///     // Field of each API, with its documentation; `=>` names its conversion to `Type`. Empty: the API has none.
///     openai { field: Type => conversion; }
///     tgi { field: Type; }
///     transformers { field: Type; }   // `generation_config` of a chat
/// }
/// ```
macro_rules! parameter_table {
    ($callback:path => $($arguments:tt)*) => {
        $callback! { { $($arguments)* }
            /// Sample, rather than take the most likely token. Left out: unless `temperature` is 0.
            do_sample: bool {
                meaning {}
                openai {}
                tgi {
                    /// Sample. When false and none of the fields that ask for sampling is given, the most likely token
                    /// is taken.
                    #[schema(default = false)]
                    do_sample: bool;
                }
                transformers { do_sample: bool; }
            }

            /// Divides the logits; 0 is greedy.
            temperature: f32 {
                meaning {
                    sets sampling.temperature or 1.0;
                    model_default temperature;
                    asks_for_sampling true;
                    check within(0.0..=1e6, ">= 0.0 and <= 1000000.0");
                }
                openai {
                    /// Divides the logits before sampling: higher is more random; 0 takes the most likely token.
                    #[schema(default = 1.0, minimum = 0.0, example = 0.7)]
                    temperature: f32;
                }
                tgi {
                    /// Divides the logits before sampling. Asks for sampling.
                    #[schema(exclusive_minimum = 0.0, example = 0.5)]
                    temperature: f32 => $crate::generation::values::temperature_above_zero;
                }
                transformers { temperature: f32; }
            }

            /// Divides the logits of tokens in the prompt and the text so far.
            repetition_penalty: f32 {
                meaning {
                    sets sampling.repetition_penalty or 1.0;
                    model_default repetition_penalty;
                    check within(above(0.0), "strictly positive");
                    check within(1e-6..=1e6, ">= 0.000001 and <= 1000000.0");
                }
                openai {
                    /// Divides the logits of tokens in the prompt and the text so far; 1 is off.
                    #[schema(default = 1.0, exclusive_minimum = 0.0)]
                    repetition_penalty: f32;
                }
                tgi {
                    /// Divides the logits of tokens in the prompt and the text so far; 1 is off.
                    #[schema(default = 1.0, exclusive_minimum = 0.0)]
                    repetition_penalty: f32;
                }
                transformers { repetition_penalty: f32; }
            }

            /// Subtracted from the logits of tokens for each time that the text so far contains them.
            frequency_penalty: f32 {
                meaning {
                    sets sampling.frequency_penalty or 0.0;
                    check within(-2.0..=2.0, ">= -2.0 and <= 2.0");
                }
                openai {
                    /// Subtracted from the logits of tokens for each time that the text so far contains them.
                    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
                    frequency_penalty: f32;
                }
                tgi {
                    /// Subtracted from the logits of tokens for each time that the text so far contains them.
                    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
                    frequency_penalty: f32;
                }
                transformers {}
            }

            /// Subtracted from the logits of tokens that the text so far contains.
            presence_penalty: f32 {
                meaning {
                    sets sampling.presence_penalty or 0.0;
                    check within(-2.0..=2.0, ">= -2.0 and <= 2.0");
                }
                openai {
                    /// Subtracted from the logits of tokens that the text so far contains.
                    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
                    presence_penalty: f32;
                }
                tgi {
                    /// Subtracted from the logits of tokens that the text so far contains.
                    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
                    presence_penalty: f32;
                }
                transformers {}
            }

            /// Sample from this many most likely tokens; 0 is off.
            top_k: u32 {
                meaning {
                    sets sampling.top_k or 0;
                    model_default top_k;
                    asks_for_sampling true;
                }
                openai {
                    /// Sample from this many most likely tokens; 0 and -1 are off.
                    #[schema(default = -1, minimum = -1)]
                    top_k: i64 => $crate::generation::values::top_k_or_off;
                }
                tgi {
                    /// Sample from this many most likely tokens. Asks for sampling.
                    #[schema(minimum = 1)]
                    top_k: i64 => $crate::generation::values::positive_top_k;
                }
                transformers { top_k: i64 => $crate::generation::values::top_k_or_off; }
            }

            /// Sample from the most likely tokens that together have this probability.
            top_p: f32 {
                meaning {
                    sets sampling.top_p or 1.0;
                    model_default top_p;
                    asks_for_sampling true;
                    check within(above_up_to(0.0, 1.0), "> 0.0 and <= 1.0");
                }
                openai {
                    /// Sample from the most likely tokens that together have this probability; 1 is off, 0 takes the
                    /// most likely one.
                    #[schema(default = 1.0, minimum = 0.0, maximum = 1.0)]
                    top_p: f32;
                }
                tgi {
                    /// Sample from the most likely tokens that together have this probability; 1 is off. Asks for
                    /// sampling.
                    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
                    top_p: f32;
                }
                transformers { top_p: f32; }
            }

            /// Sample from the most typical tokens that together have this probability.
            typical_p: f32 {
                meaning {
                    sets sampling.typical_p or 1.0;
                    model_default typical_p;
                    asks_for_sampling true;
                    check within(above_up_to(0.0, 1.0), "> 0.0 and <= 1.0");
                }
                openai {
                    /// Sample from the most typical tokens that together have this probability; 1 is off.
                    #[schema(default = 1.0, exclusive_minimum = 0.0, maximum = 1.0)]
                    typical_p: f32;
                }
                tgi {
                    /// Sample from the most typical tokens that together have this probability; 1 is off. Asks for
                    /// sampling.
                    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
                    typical_p: f32;
                }
                transformers { typical_p: f32; }
            }

            /// Sample from tokens with at least this fraction of the most likely token's probability.
            min_p: f32 {
                meaning {
                    sets sampling.min_p or 0.0;
                    model_default min_p;
                    asks_for_sampling true;
                    check within(0.0..=1.0, ">= 0.0 and <= 1.0");
                }
                openai {
                    /// Sample from tokens that have at least this fraction of the most likely token's probability; 0 is
                    /// off.
                    #[schema(default = 0.0, minimum = 0.0, maximum = 1.0)]
                    min_p: f32;
                }
                tgi {
                    /// Sample from tokens that have at least this fraction of the most likely token's probability. Asks
                    /// for sampling.
                    #[schema(minimum = 0.0, maximum = 1.0)]
                    min_p: f32;
                }
                transformers { min_p: f32; }
            }

            /// Seed of the random numbers; a random one when left out.
            seed: u64 {
                meaning {}
                openai {
                    /// The same seed with the same request gives the same text; random when left out.
                    seed: $crate::generation::values::Seed => $crate::generation::values::seed;
                }
                tgi {
                    /// The same seed with the same request gives the same text; random when left out.
                    seed: u64;
                }
                transformers {}
            }

            /// Maximum number of tokens to generate. Left out: `default_max_new_tokens`.
            max_new_tokens: u32 {
                meaning {
                    check positive;
                }
                openai {}
                tgi {
                    /// Maximum number of tokens to generate. Left out: the rest of the context.
                    #[schema(minimum = 1, example = 20)]
                    max_new_tokens: u32;
                }
                transformers { max_new_tokens: u32; }
            }

            /// Minimum number of tokens to generate: until then, no end-of-sequence token, stop token or stop sequence
            /// ends the text. At most the maximum, see `validation.rs`.
            min_new_tokens: u32 {
                meaning {
                    sets stop.min_new_tokens or 0;
                }
                openai {
                    /// Minimum number of tokens to generate: until then, no end-of-sequence token, stop token or stop
                    /// sequence ends the text. At most the maximum number of tokens.
                    #[schema(default = 0, minimum = 0)]
                    min_tokens: u32;
                }
                tgi {
                    /// Minimum number of tokens to generate: until then, no end-of-sequence token, stop token or stop
                    /// sequence ends the text. At most `max_new_tokens`.
                    #[schema(default = 0, minimum = 0)]
                    min_new_tokens: u32;
                }
                transformers { min_new_tokens: u32; }
            }

            /// Sequences that end the text.
            stop: Vec<String> {
                meaning {
                    sets stop.strings or Vec::new();
                    check stop_sequences;
                }
                openai {
                    /// Sequences that end the text; they are not part of it, unless `include_stop_str_in_output` is
                    /// set.
                    stop: $crate::generation::values::Stop => $crate::generation::values::stop_sequences;
                }
                tgi {
                    /// Sequences that end the text; the one that is found is part of it.
                    stop: Vec<String>;
                }
                transformers {
                    /// Sequences that end the text, one or several.
                    stop_strings: Vec<String>;
                }
            }

            /// End the text with the stop sequence rather than before it.
            include_stop: bool {
                meaning {
                    sets stop.include_in_output or false;
                }
                openai {
                    /// End the text with the stop sequence that was found.
                    #[schema(default = false)]
                    include_stop_str_in_output: bool;
                }
                tgi {}
                transformers {}
            }

            /// Share cached keys and values only with requests that give the same salt.
            cache_salt: String {
                meaning {
                    check cache_salt;
                }
                openai {
                    /// Share cached prompts only with requests that have the same salt, so that tenants cannot learn
                    /// from the time of an answer what others asked. Any text of 1 to 512 bytes.
                    cache_salt: String;
                }
                tgi {
                    /// Share cached prompts only with requests that have the same salt. Any text of 1 to 512 bytes.
                    cache_salt: String;
                }
                transformers {}
            }

            /// Class of the request in the queue.
            priority: gridwork_engine::Priority {
                meaning {
                    sets priority or gridwork_engine::Priority::Normal;
                }
                openai {
                    /// Class in the queue: negative numbers go first, positive ones last, 0 between them.
                    #[schema(default = 0)]
                    priority: i64 => $crate::generation::values::priority;
                }
                tgi {}
                transformers {}
            }

            /// Number of most likely tokens to report beside every generated one.
            top_n_tokens: u32 {
                meaning {
                    check top_n_tokens;
                }
                openai {}
                tgi {
                    /// Number of most likely tokens to report at every position.
                    #[schema(default = 0, minimum = 0)]
                    top_n_tokens: u32;
                }
                transformers {}
            }

            /// Tokens that the text may consist of.
            allowed_token_ids: Vec<u32> {
                meaning {
                    sets sampling.allowed_token_ids or Vec::new();
                    check token_ids;
                    check not_empty;
                }
                openai {
                    /// Tokens that the text may consist of; all others are forbidden, also those that end it.
                    allowed_token_ids: Vec<u32>;
                }
                tgi {}
                transformers {}
            }

            /// Added to the logits of these tokens.
            logit_bias: Vec<(u32, f32)> {
                meaning {
                    check logit_bias;
                }
                openai {
                    /// Added to the logits: from token ids, as strings, to values from -100 to 100.
                    #[schema(example = json!({"50256": -100}))]
                    logit_bias: std::collections::BTreeMap<String, f32> => $crate::generation::values::logit_bias;
                }
                tgi {
                    /// Added to the logits: from token ids to values from -100 to 100.
                    logit_bias: std::collections::BTreeMap<String, f32> => $crate::generation::values::logit_bias;
                }
                transformers {}
            }

            /// Words that the text does not contain, as a text begins with them and behind a space.
            bad_words: Vec<String> {
                meaning {
                    check bad_words;
                }
                openai {
                    /// Words that the text does not contain: no token comes that would complete the tokens of one, with
                    /// or without a space before it. The prompt's end counts as part of the text.
                    bad_words: Vec<String>;
                }
                tgi {}
                transformers {}
            }

            /// Runs of tokens that the text does not contain.
            bad_words_ids: Vec<Vec<u32>> {
                meaning {
                    check token_runs;
                }
                openai {}
                tgi {}
                transformers { bad_words_ids: Vec<Vec<u32>>; }
            }

            /// Values added to the logit of a run's last token, where the tokens before it are the rest of the run.
            sequence_bias: Vec<(Vec<u32>, f32)> {
                meaning {
                    check sequence_bias;
                }
                openai {}
                tgi {}
                transformers { sequence_bias: Vec<(Vec<u32>, f32)>; }
            }

            /// Tokens that the text does not contain.
            suppress_tokens: Vec<u32> {
                meaning {
                    check token_ids;
                }
                openai {}
                tgi {}
                transformers { suppress_tokens: Vec<u32>; }
            }

            /// Tokens that the text does not begin with.
            begin_suppress_tokens: Vec<u32> {
                meaning {
                    sets sampling.begin_forbidden_token_ids or Vec::new();
                    check token_ids;
                }
                openai {}
                tgi {}
                transformers { begin_suppress_tokens: Vec<u32>; }
            }

            /// Number of tokens of runs that prompt and text together contain once; 0 is off.
            no_repeat_ngram_size: u32 {
                meaning {
                    sets sampling.no_repeat_ngram_size or 0;
                    model_default no_repeat_ngram_size;
                }
                openai {}
                tgi {}
                transformers { no_repeat_ngram_size: u32; }
            }

            /// Watermark of the text.
            watermark: $crate::generation::watermark::Watermark {
                meaning {
                    check watermark;
                }
                openai {}
                tgi {
                    /// Mark the text, so that a detector tells it from others: tokens that the token before them chooses
                    /// are more likely. `--watermark-gamma` and `--watermark-delta` say how many, and by how much.
                    #[schema(default = false)]
                    watermark: bool => $crate::generation::watermark::of_server;
                }
                transformers {
                    watermarking_config: $crate::generation::watermark::WatermarkingConfig =>
                        $crate::generation::watermark::of_config;
                }
            }

            /// Tokens that end the text, besides the model's own.
            stop_token_ids: Vec<u32> {
                meaning {
                    sets stop.token_ids or Vec::new();
                    check token_ids;
                }
                openai {
                    /// Tokens that end the text, besides the model's own; they are not part of it.
                    stop_token_ids: Vec<u32>;
                }
                tgi {
                    /// Tokens that end the text, besides the model's own.
                    stop_token_ids: Vec<u32>;
                }
                transformers {
                    /// Further tokens that end the text, one or several.
                    eos_token_id: Vec<u32>;
                }
            }

            /// Continue after an end-of-sequence token.
            ignore_eos: bool {
                meaning {
                    sets stop.ignore_eos or false;
                }
                openai {
                    /// Continue after an end-of-sequence token.
                    #[schema(default = false)]
                    ignore_eos: bool;
                }
                tgi {
                    /// Continue after an end-of-sequence token.
                    #[schema(default = false)]
                    ignore_eos: bool;
                }
                transformers {}
            }

            /// Leave special tokens out of the text.
            skip_special_tokens: bool {
                meaning {
                    sets skip_special_tokens or true;
                }
                openai {
                    /// Leave special tokens out of the text.
                    #[schema(default = true)]
                    skip_special_tokens: bool;
                }
                tgi {
                    /// Leave special tokens out of the text.
                    #[schema(default = true)]
                    skip_special_tokens: bool;
                }
                transformers {}
            }

            /// Keep only this many tokens at the prompt's end.
            truncate: usize {
                meaning {}
                openai {
                    /// Keep only this many tokens at the end of the prompt; -1: as many as the model takes.
                    #[schema(minimum = -1)]
                    truncate_prompt_tokens: i64 => $crate::generation::values::truncate_prompt_tokens;
                }
                tgi {
                    /// Keep only this many tokens at the end of `inputs`.
                    #[schema(minimum = 1)]
                    truncate: usize;
                }
                transformers {}
            }
        }
    };
}
pub(crate) use parameter_table;

/// Parameters of other servers that would change the answer and that OpenAI's routes here do not have.
pub const UNSUPPORTED: [&str; 8] = [
    "logits_processors",
    "use_beam_search",
    "prompt_embeds",
    "adapter_id",
    "lora_path",
    "mirostat",
    "dry_multiplier",
    "xtc_probability",
];
