//! Truncation of inputs on OpenAI's routes for encoders.

use gridwork_proto::v1::InfoResponse;

use crate::encoder::{Truncation, TruncationDirection};
use crate::error::ApiError;
use crate::state::AppState;

/// Truncation of a request's inputs, and their maximum number of tokens. `truncate` is the field of
/// text-embeddings-inference, `truncate_prompt_tokens` that of vLLM, where -1 is the model's maximum.
pub fn cut(
    state: &AppState,
    info: &InfoResponse,
    truncate: Option<bool>,
    truncate_prompt_tokens: Option<i64>,
) -> Result<(Truncation, usize), ApiError> {
    let encoder = state.encoder();
    let limit = encoder.max_input_tokens(info);
    let max_tokens = match truncate_prompt_tokens {
        None | Some(-1) => limit,
        Some(tokens) => usize::try_from(tokens)
            .ok()
            .filter(|tokens| (1..=limit).contains(tokens))
            .ok_or_else(|| {
                ApiError::validation(
                    "truncate_prompt_tokens",
                    format!(
                        "`truncate_prompt_tokens` must be -1, or 1 to {limit}. Given: {tokens}"
                    ),
                )
            })?,
    };
    let enabled = match truncate_prompt_tokens {
        Some(_) => true,
        None => truncate.unwrap_or(encoder.limits.auto_truncate),
    };
    let truncation = Truncation {
        enabled,
        direction: TruncationDirection::Right,
    };
    Ok((truncation, max_tokens))
}
