//! `/embed`, `/embed_all` and `/embed_sparse`: vectors of inputs.

use std::sync::Arc;

use axum::response::Response;
use gridwork_engine::Output;
use gridwork_proto::v1::InfoResponse;

use super::types::{EmbedRequest, SparseValue};
use crate::encoder::{EncodedInputs, Input, Preparation, VectorShape};
use crate::error::{ApiError, ErrorResponse};
use crate::http::route::{Arrival, LISTED, Received};
use crate::state::AppState;

/// A vector for each input.
#[utoipa::path(
    post, path = LISTED, request_body = EmbedRequest,
    responses(
        (status = 200, description = "The vectors, an array of one for a single input", body = Vec<Vec<f32>>),
        (status = 400, description = "Nothing to embed, or the model does not embed", body = ErrorResponse),
        (status = 413, description = "Too long, too many, or a value out of range", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn embed(call: Received<EmbedRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let info = arrival.encoder(&state)?;
    let shape = VectorShape::new(request.dimensions, request.normalize, &info)?;
    let encoded = encode(&state, &info, request, Output::Vector).await?;
    let vectors: Vec<Vec<f32>> = encoded
        .results
        .into_iter()
        .map(|result| shape.apply(result.values))
        .collect();
    Ok(accounting.respond_encoded(&vectors, &encoded.usage))
}

/// A vector for each token of each input, not pooled and not normalized.
#[utoipa::path(
    post, path = LISTED, request_body = EmbedRequest,
    responses(
        (status = 200, description = "For each input its tokens' vectors", body = Vec<Vec<Vec<f32>>>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn embed_all(call: Received<EmbedRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoded = encode_unpooled(&state, &arrival, request, Output::TokenVectors).await?;
    let vectors: Vec<Vec<Vec<f32>>> = encoded
        .results
        .iter()
        .zip(&encoded.lengths)
        .map(|(result, length)| {
            let size = result.values.len() / length;
            result
                .values
                .chunks_exact(size.max(1))
                .map(<[f32]>::to_vec)
                .collect()
        })
        .collect();
    Ok(accounting.respond_encoded(&vectors, &encoded.usage))
}

/// A sparse vector over the vocabulary for each input, as SPLADE models make them; of masked language models.
#[utoipa::path(
    post, path = LISTED, request_body = EmbedRequest,
    responses(
        (status = 200, description = "For each input the tokens that have a weight", body = Vec<Vec<SparseValue>>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn embed_sparse(call: Received<EmbedRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoded = encode_unpooled(&state, &arrival, request, Output::Sparse).await?;
    let sparse: Vec<Vec<SparseValue>> = encoded
        .results
        .into_iter()
        .map(|result| {
            let weights = result.token_ids.into_iter().zip(result.values);
            weights
                .map(|(index, value)| SparseValue { index, value })
                .collect()
        })
        .collect();
    Ok(accounting.respond_encoded(&sparse, &encoded.usage))
}

/// Refuses `normalize` and `dimensions`, which are for pooled vectors.
fn refuse_shape(request: &EmbedRequest, path: &str) -> Result<(), ApiError> {
    for (field, given) in [
        ("normalize", request.normalize == Some(true)),
        ("dimensions", request.dimensions.is_some()),
    ] {
        if given {
            return Err(ApiError::validation(
                field,
                format!("`{field}` is not for {path}; leave it out"),
            ));
        }
    }
    Ok(())
}

/// Computes an output other than pooled vectors, for which [`refuse_shape`] refuses what is only for those.
async fn encode_unpooled(
    state: &AppState,
    arrival: &Arrival,
    request: EmbedRequest,
    output: Output,
) -> Result<EncodedInputs, ApiError> {
    refuse_shape(&request, arrival.route.path)?;
    let info = arrival.encoder(state)?;
    encode(state, &info, request, output).await
}

/// Computes `output` for the inputs of `request`.
async fn encode(
    state: &AppState,
    info: &Arc<InfoResponse>,
    request: EmbedRequest,
    output: Output,
) -> Result<EncodedInputs, ApiError> {
    let encoder = state.encoder();
    let inputs = request.inputs.items;
    let has_tokens = inputs.iter().any(|input| matches!(input, Input::Tokens(_)));
    if has_tokens && request.prompt_name.is_some() {
        return Err(ApiError::validation(
            "prompt_name",
            "`prompt_name` is for texts, and `inputs` has token ids",
        ));
    }
    let preparation = Preparation {
        truncation: encoder.truncation(request.truncate, request.truncation_direction),
        prompt: encoder.prompt(request.prompt_name.as_deref())?,
        ..encoder.preparation(info, "inputs")
    };
    encoder
        .encode(inputs, preparation, output.into(), |_| Ok(()))
        .await
}
