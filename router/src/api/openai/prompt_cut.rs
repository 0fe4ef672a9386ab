//! Preparation of inputs on OpenAI's routes for encoders, and their truncation.

use gridwork_proto::v1::InfoResponse;

use crate::encoder::{Preparation, Truncation, TruncationDirection};
use crate::error::ApiError;
use crate::state::AppState;

/// Fields of a request that cut its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub truncate: Option<bool>,
    pub truncate_prompt_tokens: Option<i64>,
}

/// Preparation of the `number` texts in `field`, of which no more may be given than OpenAI's routes take.
pub fn preparation(
    state: &AppState,
    info: &InfoResponse,
    field: &'static str,
    number: usize,
    by: Cut,
) -> Result<Preparation, ApiError> {
    let encoder = state.encoder();
    let preparation = Preparation {
        max_inputs: encoder.limits.max_openai_inputs,
        ..encoder.preparation(info, field)
    };
    preparation.check_number(number)?;
    let (truncation, max_tokens) = cut(state, info, by.truncate, by.truncate_prompt_tokens)?;
    Ok(Preparation {
        truncation,
        max_tokens,
        ..preparation
    })
}

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
