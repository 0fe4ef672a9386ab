//! Requests to an encoder and their results.

use std::time::Duration;

pub use gridwork_proto::v1::encode_request::Output;

use crate::error::{GenerationError, SubmitError};

/// One sequence. The caller has validated it: it is not empty, its tokens are in the vocabulary, and it is within the
/// model's maximum length.
#[derive(Debug, Clone, Default)]
pub struct EncodeSequence {
    /// Tokens, including special ones.
    pub token_ids: Vec<u32>,
    /// Token types, parallel to `token_ids`; empty when all are 0.
    pub token_type_ids: Vec<u32>,
    /// For [`Output::Tokens`]: positions to predict, as ascending indices into `token_ids`.
    pub positions: Vec<u32>,
    /// Number of leading tokens that form a prompt, which the vector excludes.
    pub prompt_length: u32,
}

/// Output requested for every sequence of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub output: Output,
    /// For [`Output::Tokens`]: number of tokens returned for each position.
    pub top_n: u32,
}

impl From<Output> for Wanted {
    fn from(output: Output) -> Self {
        Wanted { output, top_n: 0 }
    }
}

/// Result of one sequence. The contract's `Encoding` describes the numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub values: Vec<f32>,
    pub token_ids: Vec<u32>,
    pub log_normalizers: Vec<f32>,
    /// Time from submission to the batch that computed it.
    pub queue: Duration,
    /// Time that the batch took.
    pub inference: Duration,
}

/// Reasons why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The request was not admitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// One of its sequences failed.
    #[error(transparent)]
    Failed(#[from] GenerationError),
}
