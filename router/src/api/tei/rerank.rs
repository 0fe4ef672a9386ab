//! `/rerank`: texts by how well they answer a query.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use gridwork_engine::{GenerationError, Output};
use gridwork_proto::v1::Task;

use super::account::Account;
use super::types::{Rank, RerankRequest, truncation};
use crate::api::tgi::types::ErrorResponse;
use crate::encoder::{Input, Preparation, Usage, label_scores};
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::extract::ApiJson;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// Order texts by how well they answer a query, best first.
#[utoipa::path(
    post, path = "/rerank", tag = "Encoders", request_body = RerankRequest,
    responses(
        (status = 200, description = "The texts' places in `texts` and their scores, best first", body = Vec<Rank>),
        (status = 400, description = "No texts, or the model is no reranker", body = ErrorResponse),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn rerank(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<RerankRequest>,
) -> Response {
    let span = request_span(&headers, "POST", "/rerank");
    let account = Account::begin("rerank", Dialect::Tei, span);
    account.respond(&state, run(&state, request).await)
}

async fn run(state: &AppState, request: RerankRequest) -> Result<(Vec<Rank>, Usage), ApiError> {
    let encoder = state.encoder();
    let info = encoder.ready(&[Task::Rerank], "/rerank")?;
    if request.query.is_empty() {
        return Err(ApiError {
            field: Some("query".into()),
            ..ApiError::new(ErrorKind::Empty, "`query` cannot be empty")
        });
    }
    encoder.check_number(request.texts.len(), "texts")?;
    let query: Arc<str> = request.query.into();
    let preparation = Preparation {
        field: "texts",
        truncation: Some(truncation(
            state,
            request.truncate,
            request.truncation_direction,
        )),
        prompt: None,
        max_tokens: encoder.max_input_tokens(&info),
        vocab_size: info.vocab_size,
    };
    let pairs = request
        .texts
        .iter()
        .map(|text| Input::Pair(query.clone(), text.clone()))
        .collect();
    let answer = encoder
        .encode(pairs, preparation, Output::Labels.into(), |_| Ok(()))
        .await?;
    let raw = request.raw_scores.unwrap_or(false);
    let mut ranks = Vec::with_capacity(answer.results.len());
    for (index, result) in answer.results.iter().enumerate() {
        let &[score] = &result.values[..] else {
            let message = format!("the shard gave {} scores for a text", result.values.len());
            return Err(GenerationError::Shard(message).into());
        };
        ranks.push(Rank {
            index,
            text: None,
            score: if raw {
                score
            } else {
                label_scores(&info, &[score])[0]
            },
        });
    }
    // By the logits: sigmoids of large ones are equal.
    ranks.sort_by(|a, b| {
        let score = |rank: &Rank| answer.results[rank.index].values[0];
        score(b).total_cmp(&score(a))
    });
    if request.return_text.unwrap_or(false) {
        let mut texts = request.texts;
        for rank in &mut ranks {
            rank.text = Some(std::mem::take(&mut texts[rank.index]));
        }
    }
    Ok((ranks, answer.usage))
}
