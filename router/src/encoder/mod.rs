//! What the routes of encoders share: the served model, tokenizing and checking inputs, and computing them.

mod files;
mod inputs;
mod ranking;
mod scores;
mod task;
mod vectors;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_engine::{EncodeSequence, Encoded, Encoder, Wanted};
use gridwork_proto::v1::InfoResponse;
use tokenizers::Tokenizer;

use crate::connections::intake;
use crate::error::{ApiError, ErrorKind};
use crate::observability::metrics;
use crate::tokenizing::text_encoder::not_tokenized;
use crate::tokenizing::tokenizer_regex::SlowRegexes;
use crate::tokenizing::workers::Workers;
pub use files::{DefaultPrompt, EncoderFiles, Sources};
pub use inputs::{Input, Normalization, Preparation, Truncation, TruncationDirection};
pub use ranking::check_query;
pub use scores::label_scores;
pub use task::{pipeline_tag, task_name};
pub use vectors::{VectorShape, cosine};

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLimits {
    /// Longest input, tokens; `None`: what the model allows.
    pub max_input_tokens: Option<u32>,
    pub max_batch_tokens: u32,
    /// Most sequences of a batch.
    pub max_batch_size: u32,
    /// Most inputs of one request.
    pub max_client_batch_size: usize,
    /// The same on OpenAI's routes.
    pub max_openai_inputs: usize,
    /// Whether inputs that are too long are cut when a request does not say.
    pub auto_truncate: bool,
    /// Maximum number of bytes to be tokenized for one request.
    pub max_request_bytes: usize,
}

/// One request's texts may be so many times the largest body: a query counts for each of its texts.
pub const LARGEST_BODIES: usize = 4;

/// An encoder as handlers see it. Always there; [`EncoderService::ready`] tells whether the served model is one.
pub struct EncoderService {
    encoder: Encoder,
    tokenizer: Arc<Tokenizer>,
    slow_regexes: SlowRegexes,
    files: EncoderFiles,
    limits: EncoderLimits,
    workers: Workers,
}

/// Results of one request, in the order of its inputs, and its usage.
#[derive(Debug)]
pub struct EncodedInputs {
    pub results: Vec<Encoded>,
    /// Number of tokens of each input, at least 1.
    pub lengths: Vec<usize>,
    pub usage: EncodingUsage,
}

/// Counts and times of one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodingUsage {
    /// Tokens of all inputs.
    pub tokens: usize,
    /// Characters of all texts.
    pub chars: usize,
    pub tokenization: Duration,
    /// Time in the queue of the input that waited longest.
    pub queue: Duration,
    /// Time of the slowest batch.
    pub inference: Duration,
}

impl EncoderService {
    /// `files`: what the model's folder says of prompts and texts.
    pub fn new(
        encoder: Encoder,
        tokenizer: Arc<Tokenizer>,
        slow_regexes: SlowRegexes,
        files: EncoderFiles,
        limits: EncoderLimits,
        workers: Workers,
    ) -> Self {
        EncoderService {
            files,
            encoder,
            tokenizer,
            slow_regexes,
            limits,
            workers,
        }
    }

    pub fn handle(&self) -> &Encoder {
        &self.encoder
    }

    pub fn limits(&self) -> &EncoderLimits {
        &self.limits
    }

    /// What is served, when that is an encoder and it has been loaded.
    pub fn loaded(&self) -> Option<Arc<InfoResponse>> {
        self.encoder.loaded()
    }

    /// What is served, or the refusal that it is still loading.
    pub fn ready(&self) -> Result<Arc<InfoResponse>, ApiError> {
        self.loaded().ok_or_else(|| ApiError {
            retry_after_s: Some(5),
            ..ApiError::new(ErrorKind::Unavailable, "the model is still loading")
        })
    }

    /// Longest input, tokens.
    pub fn max_input_tokens(&self, info: &InfoResponse) -> usize {
        // A model that names no limit gets one all the same: memory grows with the square of the length.
        let model = match info.max_input_tokens {
            0 => self.limits.max_batch_tokens,
            limit => limit,
        };
        self.limits
            .max_input_tokens
            .map_or(model, |limit| limit.min(model)) as usize
    }

    /// The text that the model's files put before inputs under this name; without one, what they put before all.
    pub fn prompt(&self, name: Option<&str>) -> Result<Option<String>, ApiError> {
        self.files.prompt(name)
    }

    /// What is done to a text before it is tokenized.
    pub fn normalization(&self) -> Normalization {
        self.files.normalization
    }

    /// The token to be filled in and what it looks like.
    pub fn mask(&self) -> Option<(u32, &str)> {
        self.files
            .mask
            .as_ref()
            .map(|(id, text)| (*id, text.as_str()))
    }

    /// Truncation that a request asks for; what it leaves out is as the operator has set it.
    pub fn truncation(
        &self,
        enabled: Option<bool>,
        direction: Option<TruncationDirection>,
    ) -> Truncation {
        Truncation {
            enabled: enabled.unwrap_or(self.limits.auto_truncate),
            direction: direction.unwrap_or_default(),
        }
    }

    /// Preparation of the inputs in `field` without a prompt, with the limits and the truncation of the operator.
    pub fn preparation(&self, info: &InfoResponse, field: &'static str) -> Preparation {
        Preparation {
            field,
            max_inputs: self.limits.max_client_batch_size,
            truncation: self.truncation(None, None),
            prompt: None,
            max_tokens: self.max_input_tokens(info),
            vocab_size: info.vocab_size,
        }
    }

    /// Refuses an empty array of inputs and one beyond `--max-client-batch-size`. `field`: the array's name.
    pub fn check_number(&self, number: usize, field: &str) -> Result<(), ApiError> {
        inputs::check_number(self.limits.max_client_batch_size, number, field)
    }

    /// Refuses what would take too long to tokenize: a query counts for each of its texts.
    fn check_bytes(&self, bytes: usize, field: &str) -> Result<(), ApiError> {
        let limit = self.limits.max_request_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(ApiError::validation(
            field,
            format!(
                "`{field}` and what goes with each of them have {bytes} bytes together, and one request may have \
                 {limit} ({LARGEST_BODIES} times --payload-limit)"
            ),
        ))
    }

    /// Tokenizes, checks and computes `inputs`. `adapt` may change each sequence once it is tokenized.
    pub async fn encode(
        &self,
        inputs: Vec<Input>,
        preparation: Preparation,
        wanted: Wanted,
        adapt: impl Fn(&mut EncodeSequence) -> Result<(), ApiError>,
    ) -> Result<EncodedInputs, ApiError> {
        let field = preparation.field;
        preparation.check_number(inputs.len())?;
        let bytes = inputs.iter().map(Input::num_bytes).sum();
        self.check_bytes(bytes, field)?;
        // Before anything is worked on.
        let permit = self.encoder.reserve()?;
        let started = Instant::now();
        let (tokenizer, slow) = (self.tokenizer.clone(), self.slow_regexes.clone());
        let normalization = self.files.normalization;
        let excludes_prompt = self.loaded().is_some_and(|info| info.excludes_prompt);
        let preparing = self.workers.run(bytes, move || {
            let chars: usize = inputs.iter().map(Input::num_chars).sum();
            let prompt_length = match excludes_prompt {
                true => preparation.prompt_length(&tokenizer, normalization),
                false => 0,
            };
            let prepared = inputs
                .into_iter()
                .map(|input| {
                    input.check(&slow, field)?;
                    let is_text = !matches!(input, Input::Tokens(_));
                    let mut sequence = preparation.prepare(&tokenizer, input, normalization)?;
                    sequence.prompt_length = if is_text { prompt_length } else { 0 };
                    Ok(sequence)
                })
                .collect::<Result<Vec<_>, ApiError>>();
            prepared.map(|sequences| (sequences, chars))
        });
        let (mut sequences, chars) = preparing
            .await
            .map_err(|error| not_tokenized(error, field))??;
        intake::release_current();
        sequences.iter_mut().try_for_each(adapt)?;
        let tokenization = started.elapsed();
        metrics::request_validation().record(tokenization.as_secs_f64());
        let lengths: Vec<usize> = sequences
            .iter()
            .map(|sequence| sequence.token_ids.len())
            .collect();
        for &length in &lengths {
            metrics::request_input_tokens().record(length as f64);
        }
        let results = self.encoder.encode_with(permit, sequences, wanted).await?;
        let longest = |time: fn(&Encoded) -> Duration| results.iter().map(time).max();
        let usage = EncodingUsage {
            tokens: lengths.iter().sum(),
            chars,
            tokenization,
            queue: longest(|result| result.queue).unwrap_or_default(),
            inference: longest(|result| result.inference).unwrap_or_default(),
        };
        Ok(EncodedInputs {
            results,
            lengths,
            usage,
        })
    }
}
