//! Service of encoders for their routes: it tokenizes and checks inputs, has the engine compute them, and knows the
//! served model.

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

use crate::api_keys::current_tenant;
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

/// Limits that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLimits {
    /// Maximum number of tokens of an input; `None` for the model's own limit.
    pub max_input_tokens: Option<u32>,
    /// Maximum number of tokens in a batch.
    pub max_batch_tokens: u32,
    /// Maximum number of sequences in a batch.
    pub max_batch_size: u32,
    /// Maximum number of inputs of one request.
    pub max_client_batch_size: usize,
    /// Maximum number of inputs of one request on OpenAI's routes.
    pub max_openai_inputs: usize,
    /// True if inputs that are too long are cut when a request does not say.
    pub auto_truncate: bool,
    /// Maximum number of bytes that are tokenized for one request.
    pub max_request_bytes: usize,
}

/// Size of one request's texts, as a multiple of the largest body. A query counts once for each of its texts.
pub const LARGEST_BODIES: usize = 4;

/// Service of an encoder. It exists for every model; [`EncoderService::ready`] refuses when none is loaded.
pub struct EncoderService {
    /// The engine's part.
    pub encoder: Encoder,
    pub tokenizer: Arc<Tokenizer>,
    pub slow_regexes: SlowRegexes,
    /// Prompts and texts in the model's folder.
    pub files: EncoderFiles,
    pub limits: EncoderLimits,
    pub workers: Workers,
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
    /// The served model, when it is an encoder and loaded.
    pub fn loaded(&self) -> Option<Arc<InfoResponse>> {
        self.encoder.loaded()
    }

    /// The served model, or the error that it is still loading.
    pub fn ready(&self) -> Result<Arc<InfoResponse>, ApiError> {
        self.loaded().ok_or_else(|| ApiError {
            retry_after_s: Some(5),
            ..ApiError::new(ErrorKind::Unavailable, "the model is still loading")
        })
    }

    /// Maximum number of tokens of an input.
    pub fn max_input_tokens(&self, info: &InfoResponse) -> usize {
        // A model without a limit gets one too: memory grows with the square of the length.
        let model = match info.max_input_tokens {
            0 => self.limits.max_batch_tokens,
            limit => limit,
        };
        self.limits
            .max_input_tokens
            .map_or(model, |limit| limit.min(model)) as usize
    }

    /// Text that is put before inputs: the prompt of this name in the model's files, or the default prompt without a
    /// name.
    pub fn prompt(&self, name: Option<&str>) -> Result<Option<String>, ApiError> {
        self.files.prompt(name)
    }

    /// Normalization of a text before it is tokenized.
    pub fn normalization(&self) -> Normalization {
        self.files.normalization
    }

    /// Id and text of the mask token.
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

    /// Refuses texts that would take too long to tokenize. A query counts once for each of its texts.
    fn check_bytes(&self, bytes: usize, field: &str) -> Result<(), ApiError> {
        let limit = self.limits.max_request_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(ApiError::validation(
            field,
            format!(
                "`{field}` and the query or prompt of each have {bytes} bytes together, and one request may have {limit} \
                 ({LARGEST_BODIES} times --payload-limit)"
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
        // Reserved first: a full server refuses without working on the inputs.
        let permit = self.encoder.reserve(current_tenant().as_ref())?;
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
