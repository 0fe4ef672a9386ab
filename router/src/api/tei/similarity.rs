//! `/similarity`: cosines of sentences' vectors.

use axum::response::Response;
use gridwork_engine::Output;

use super::types::SimilarityRequest;
use crate::encoder::{Input, Preparation, cosine};
use crate::error::{ApiError, ErrorResponse};
use crate::http::route::{LISTED, Received};

/// Compare sentences with one: the cosines of the angles between their vectors.
#[utoipa::path(
    post, path = LISTED, request_body = SimilarityRequest,
    responses(
        (status = 200, description = "A number from -1 to 1 for each sentence", body = Vec<f32>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn similarity(call: Received<SimilarityRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    let parameters = request.parameters.unwrap_or_default();
    encoder.check_number(request.inputs.sentences.len(), "inputs.sentences")?;
    let preparation = Preparation {
        truncation: encoder.truncation(parameters.truncate, parameters.truncation_direction),
        prompt: encoder.prompt(parameters.prompt_name.as_deref())?,
        ..encoder.preparation(&info, "inputs")
    };
    let texts = std::iter::once(request.inputs.source_sentence).chain(request.inputs.sentences);
    let inputs = texts.map(Input::Text).collect();
    let encoded = encoder
        .encode(inputs, preparation, Output::Vector.into(), |_| Ok(()))
        .await?;
    let similarities: Vec<f32> = match encoded.results.split_first() {
        Some((source, others)) => others
            .iter()
            .map(|other| cosine(&source.values, &other.values))
            .collect(),
        None => vec![],
    };
    Ok(accounting.respond_encoded(&similarities, &encoded.usage))
}
