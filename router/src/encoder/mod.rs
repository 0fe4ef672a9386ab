//! What the routes of encoders share: the served model, tokenizing and checking inputs, and computing them.

mod files;
mod inputs;
mod scores;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_engine::{Encoded, Encoder, Wanted};
use gridwork_proto::v1::{InfoResponse, Task};
use tokenizers::Tokenizer;

use crate::connections::intake;
use crate::error::{ApiError, ErrorKind};
use crate::tokenizing::text_encoder::not_tokenized;
use crate::tokenizing::tokenizer_regex::SlowRegexes;
use crate::tokenizing::workers::Workers;
pub use files::{DefaultPrompt, EncoderFiles, Sources};
pub use inputs::{Input, Preparation, Reading, Truncation, TruncationDirection};
pub use scores::label_scores;
pub use task::{require_encoder, require_generator, wrong_task};

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

/// The results of one request, in the order of its inputs, and what they took.
#[derive(Debug)]
pub struct Answer {
    pub results: Vec<Encoded>,
    /// Tokens of each input; at least 1.
    pub lengths: Vec<usize>,
    pub usage: Usage,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Tokens of all inputs.
    pub tokens: usize,
    /// Characters of all texts.
    pub chars: usize,
    pub tokenization: Duration,
    /// Of the input that waited longest.
    pub queue: Duration,
    /// Of the slowest batch.
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

    /// What is served, when it is one of `tasks`, for the route at `path`.
    pub fn ready(&self, tasks: &[Task], path: &str) -> Result<Arc<InfoResponse>, ApiError> {
        let info = self.loaded().ok_or_else(|| ApiError {
            retry_after_s: Some(5),
            ..ApiError::new(ErrorKind::Unavailable, "the model is still loading")
        })?;
        if tasks.contains(&info.task()) {
            Ok(info)
        } else {
            Err(wrong_task(info.task(), path))
        }
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
    pub fn reading(&self) -> Reading {
        self.files.reading
    }

    /// The token to be filled in and what it looks like.
    pub fn mask(&self) -> Option<(u32, &str)> {
        self.files
            .mask
            .as_ref()
            .map(|(id, text)| (*id, text.as_str()))
    }

    /// Refuses no inputs, and too many of them. `field`: as the client calls it.
    pub fn check_number(&self, number: usize, field: &str) -> Result<(), ApiError> {
        Self::check_number_up_to(self.limits.max_client_batch_size, number, field)
    }

    /// The same with another limit.
    pub fn check_number_up_to(limit: usize, number: usize, field: &str) -> Result<(), ApiError> {
        if number == 0 {
            return Err(inputs::empty(field));
        }
        if number > limit {
            return Err(ApiError::validation(
                field,
                format!(
                    "`{field}` has {number} inputs, and one request may have {limit} (--max-client-batch-size)"
                ),
            ));
        }
        Ok(())
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

    /// Tokenizes and checks `inputs`, and computes them. `adapt` may change what is to be computed, once it is tokenized.
    pub async fn encode(
        &self,
        inputs: Vec<Input>,
        preparation: Preparation,
        wanted: Wanted,
        adapt: impl Fn(&mut gridwork_engine::EncodeSequence) -> Result<(), ApiError>,
    ) -> Result<Answer, ApiError> {
        let most = self.limits.max_client_batch_size;
        self.encode_up_to(most, inputs, preparation, wanted, adapt)
            .await
    }

    /// The same with another limit of inputs.
    pub async fn encode_up_to(
        &self,
        most_inputs: usize,
        inputs: Vec<Input>,
        preparation: Preparation,
        wanted: Wanted,
        adapt: impl Fn(&mut gridwork_engine::EncodeSequence) -> Result<(), ApiError>,
    ) -> Result<Answer, ApiError> {
        let field = preparation.field;
        Self::check_number_up_to(most_inputs, inputs.len(), field)?;
        let bytes = inputs.iter().map(Input::num_bytes).sum();
        self.check_bytes(bytes, field)?;
        // Before anything is worked on.
        let permit = self.encoder.reserve()?;
        let started = Instant::now();
        let (tokenizer, slow) = (self.tokenizer.clone(), self.slow_regexes.clone());
        let reading = self.files.reading;
        let excludes_prompt = self.loaded().is_some_and(|info| info.excludes_prompt);
        let preparing = self.workers.run(bytes, move || {
            let chars: usize = inputs.iter().map(Input::num_chars).sum();
            let prompt_length = match excludes_prompt {
                true => preparation.prompt_length(&tokenizer, reading),
                false => 0,
            };
            let prepared = inputs
                .into_iter()
                .map(|input| {
                    input.check(&slow, field)?;
                    let is_text = !matches!(input, Input::Tokens(_));
                    let mut sequence = preparation.prepare(&tokenizer, input, reading)?;
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
        metrics::histogram!("gridwork_request_validation_seconds")
            .record(tokenization.as_secs_f64());
        let lengths: Vec<usize> = sequences
            .iter()
            .map(|sequence| sequence.token_ids.len())
            .collect();
        for &length in &lengths {
            metrics::histogram!("gridwork_request_input_tokens").record(length as f64);
        }
        let results = self.encoder.encode_with(permit, sequences, wanted).await?;
        let longest = |time: fn(&Encoded) -> Duration| results.iter().map(time).max();
        let usage = Usage {
            tokens: lengths.iter().sum(),
            chars,
            tokenization,
            queue: longest(|result| result.queue).unwrap_or_default(),
            inference: longest(|result| result.inference).unwrap_or_default(),
        };
        Ok(Answer {
            results,
            lengths,
            usage,
        })
    }
}
