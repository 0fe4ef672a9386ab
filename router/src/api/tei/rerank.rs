//! `/rerank`: texts by how well they answer a query.

use axum::response::Response;

use super::types::{Rank, RerankTextsRequest};
use crate::encoder::{Preparation, check_query, label_scores};
use crate::error::{ApiError, ErrorResponse};
use crate::http::route::{LISTED, Received};

/// Order texts by how well they answer a query, best first.
#[utoipa::path(
    post, path = LISTED, request_body = RerankTextsRequest,
    responses(
        (status = 200, description = "The texts' places in `texts` and their scores, best first", body = Vec<Rank>),
        (status = 400, description = "No texts, or the model is no reranker", body = ErrorResponse),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn rerank(call: Received<RerankTextsRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    check_query(&request.query)?;
    let preparation = Preparation {
        truncation: encoder.truncation(request.truncate, request.truncation_direction),
        ..encoder.preparation(&info, "texts")
    };
    preparation.check_number(request.texts.len())?;
    let mut texts = request.texts;
    let (ranked, usage) = encoder.rank(&request.query, &texts, preparation).await?;
    let raw = request.raw_scores.unwrap_or(false);
    let shown = request.return_text.unwrap_or(false);
    let ranks: Vec<Rank> = ranked
        .into_iter()
        .map(|text| Rank {
            index: text.index,
            text: shown.then(|| std::mem::take(&mut texts[text.index])),
            score: if raw {
                text.logit
            } else {
                label_scores(&info, &[text.logit])[0]
            },
        })
        .collect();
    Ok(accounting.respond_encoded(&ranks, &usage))
}
