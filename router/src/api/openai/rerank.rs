//! `POST /v1/rerank` and `/v2/rerank`: documents by how well they answer a query, in the form of Jina and Cohere.

use std::sync::Arc;

use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use axum::response::Response;
use gridwork_engine::{GenerationError, Output};
use gridwork_proto::v1::Task;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt_cut::cut;
use crate::api::tei::Account;
use crate::encoder::{EncoderService, Input, Preparation, Usage, label_scores};
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::extract::{ApiJson, Body};
use crate::http::unread::Unread;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// What to order, and by what.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct RerankRequest {
    /// Any name, or none: there is one model.
    #[expect(dead_code, reason = "documented and accepted, but there is one model")]
    pub model: Option<String>,
    pub query: String,
    /// Strings, or objects with a `text`.
    pub documents: Vec<Document>,
    /// Answer so many of the best; all when left out.
    #[schema(minimum = 1)]
    pub top_n: Option<usize>,
    /// Answer the documents too; true when left out.
    pub return_documents: Option<bool>,
    /// Cut what is too long, rather than refuse it; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// Cut a query and its document to so many tokens together, or to the model's maximum with -1.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
}

impl Body for RerankRequest {
    const UNREAD: &'static [Unread] = &[
        Unread::renamed("texts", "documents"),
        Unread::unsupported("rank_fields"),
        Unread::unsupported("max_tokens_per_doc"),
        Unread::unsupported("max_chunks_per_doc"),
    ];
}

/// One of the texts that are ordered.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an object with a `text`")]
pub enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Document::Text(text) | Document::Object { text } => text,
        }
    }
}

/// The documents, best first.
#[derive(Debug, Serialize, ToSchema)]
pub struct RerankResponse {
    pub id: String,
    pub model: String,
    pub usage: RerankUsage,
    pub results: Vec<RerankResult>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RerankUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RerankResult {
    /// In the request's `documents`.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankedDocument>,
    /// What the model's folder makes of the logit: the sigmoid, unless it says otherwise.
    pub relevance_score: f32,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RerankedDocument {
    pub text: String,
}

/// Order documents by how well they answer a query, best first
///
/// `/v2/rerank` is the same.
#[utoipa::path(
    post,
    path = "/v1/rerank",
    tag = "OpenAI",
    request_body = RerankRequest,
    responses(
        (status = 200, description = "The documents, best first", body = RerankResponse),
        (status = 400, description = "Not valid, or the model is no reranker; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn rerank(
    State(state): State<AppState>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    ApiJson(request): ApiJson<RerankRequest>,
) -> Response {
    let path = match uri.path() {
        "/v2/rerank" => "/v2/rerank",
        _ => "/v1/rerank",
    };
    let span = request_span(&headers, "POST", path);
    let account = Account::begin("rerank", Dialect::OpenAi, span);
    account.respond(&state, run(&state, request, path).await)
}

async fn run(
    state: &AppState,
    request: RerankRequest,
    path: &str,
) -> Result<(RerankResponse, Usage), ApiError> {
    let encoder = state.encoder();
    let info = encoder.ready(&[Task::Rerank], path)?;
    if request.query.is_empty() {
        return Err(ApiError {
            field: Some("query".into()),
            ..ApiError::new(ErrorKind::Empty, "`query` cannot be empty")
        });
    }
    if request.top_n == Some(0) {
        return Err(ApiError::validation(
            "top_n",
            "`top_n` must be strictly positive",
        ));
    }
    let limit = encoder.limits().max_openai_inputs;
    EncoderService::check_number_up_to(limit, request.documents.len(), "documents")?;
    let (truncation, max_tokens) = cut(
        state,
        &info,
        request.truncate,
        request.truncate_prompt_tokens,
    )?;
    let preparation = Preparation {
        field: "documents",
        truncation: Some(truncation),
        prompt: None,
        max_tokens,
        vocab_size: info.vocab_size,
    };
    let documents: Vec<String> = request
        .documents
        .into_iter()
        .map(Document::into_text)
        .collect();
    let (logits, usage) = score(encoder, &request.query, &documents, preparation).await?;
    let top_n = request.top_n.unwrap_or(usize::MAX);
    let shown = request.return_documents.unwrap_or(true);
    let response = RerankResponse {
        id: format!("rerank-{}", uuid::Uuid::new_v4().simple()),
        model: state.served_name().to_owned(),
        usage: RerankUsage {
            prompt_tokens: usage.tokens,
            total_tokens: usage.tokens,
        },
        results: ranked(&logits, documents, top_n, shown, |logit| {
            label_scores(&info, &[logit])[0]
        }),
    };
    Ok((response, usage))
}

/// A logit for each document.
async fn score(
    encoder: &EncoderService,
    query: &str,
    documents: &[String],
    preparation: Preparation,
) -> Result<(Vec<f32>, Usage), ApiError> {
    let query: Arc<str> = query.into();
    let pairs: Vec<Input> = documents
        .iter()
        .map(|document| Input::Pair(query.clone(), document.clone()))
        .collect();
    let answer = encoder
        .encode_up_to(
            pairs.len(),
            pairs,
            preparation,
            Output::Labels.into(),
            |_| Ok(()),
        )
        .await?;
    let logits = answer.results.iter().map(|result| match result.values[..] {
        [logit] => Ok(logit),
        _ => Err(GenerationError::Shard(format!(
            "the shard gave {} scores for a document",
            result.values.len()
        ))),
    });
    Ok((logits.collect::<Result<_, _>>()?, answer.usage))
}

/// Sorts by the logits, since the scores of large ones are equal. `score` gives a logit's score.
fn ranked(
    logits: &[f32],
    documents: Vec<String>,
    top_n: usize,
    shown: bool,
    score: impl Fn(f32) -> f32,
) -> Vec<RerankResult> {
    let mut ranked: Vec<(usize, f32, String)> = logits
        .iter()
        .zip(documents)
        .enumerate()
        .map(|(index, (logit, text))| (index, *logit, text))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top_n);
    ranked
        .into_iter()
        .map(|(index, logit, text)| RerankResult {
            index,
            document: shown.then_some(RerankedDocument { text }),
            relevance_score: score(logit),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equals_in_their_order() {
        let documents = ["a", "b", "c"].map(str::to_owned).to_vec();
        let order = |top_n, shown| {
            let results = ranked(
                &[40.0, 50.0, 40.0],
                documents.clone(),
                top_n,
                shown,
                |logit| logit,
            );
            let results = results.into_iter().map(|result| {
                let text = result.document.map(|document| document.text);
                (result.index, text)
            });
            results.collect::<Vec<_>>()
        };
        assert_eq!(order(9, false), [(1, None), (0, None), (2, None)]);
        assert_eq!(order(1, true), [(1, Some("b".to_owned()))]);
    }

    #[test]
    fn documents_are_strings_or_objects() {
        let read = |json: &str| serde_json::from_str::<Document>(json).map(Document::into_text);
        assert_eq!(read(r#""a""#).ok().as_deref(), Some("a"));
        assert_eq!(read(r#"{"text": "a", "id": 1}"#).ok().as_deref(), Some("a"));
        assert!(read(r#"{"title": "a"}"#).is_err());
    }
}
