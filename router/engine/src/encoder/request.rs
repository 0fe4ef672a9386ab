//! What an encoder is asked for and what it answers.

use std::time::Duration;

pub use gridwork_proto::v1::encode_request::Output;

use crate::request::{GenerationError, SubmitError};

/// One sequence. The caller has validated it: it is not empty, its tokens are in the vocabulary, and it is no longer than the
/// model's limit.
#[derive(Debug, Clone, Default)]
pub struct EncodeSequence {
    /// Special tokens included.
    pub token_ids: Vec<u32>,
    /// Parallel to `token_ids`, or empty when all are 0.
    pub token_type_ids: Vec<u32>,
    /// For [`Output::Tokens`]: indices into `token_ids`, ascending.
    pub positions: Vec<u32>,
    /// How many of the first tokens are a prompt's, which the vector is to leave out.
    pub prompt_length: u32,
}

/// What is wanted of every sequence of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub output: Output,
    /// For [`Output::Tokens`]: how many tokens at each position.
    pub top_n: u32,
}

impl From<Output> for Wanted {
    fn from(output: Output) -> Self {
        Wanted { output, top_n: 0 }
    }
}

/// The result of one sequence; see the contract's `Encoding` for what the numbers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub values: Vec<f32>,
    pub token_ids: Vec<u32>,
    pub log_normalizers: Vec<f32>,
    /// From submission to the first batch that computes it.
    pub queue: Duration,
    /// Of the batch that computed it.
    pub inference: Duration,
}

/// Why a request got no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It was not admitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// One of its sequences failed later.
    #[error(transparent)]
    Failed(#[from] GenerationError),
}
