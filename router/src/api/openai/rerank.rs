//! `POST /v1/rerank` and `/v2/rerank`: documents by how well they answer a query, as at Jina and Cohere.

use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::embeddings::PromptUsage;
use super::prompt_cut::{Cut, preparation};
use crate::encoder::{check_query, label_scores};
use crate::error::ApiError;
use crate::http::extract::Body;
use crate::http::route::{LISTED, Received};
use crate::http::unsupported::UnsupportedField;

/// Body of `/v1/rerank`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct RerankDocumentsRequest {
    /// Any name, or none: one model is served.
    #[expect(dead_code, reason = "documented and accepted, but there is one model")]
    pub model: Option<String>,
    pub query: String,
    /// Documents to rank: strings, or objects with a `text`.
    pub documents: Vec<Document>,
    /// Maximum number of documents to answer, best first; all when left out.
    #[schema(minimum = 1)]
    pub top_n: Option<usize>,
    /// Include the documents in the answer; true when left out.
    pub return_documents: Option<bool>,
    /// Cut inputs that are too long instead of refusing them; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// Number of tokens that a query and its document are cut to together; -1 for the model's maximum.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
}

impl Body for RerankDocumentsRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[
        UnsupportedField::renamed("texts", "documents"),
        UnsupportedField::unsupported("rank_fields"),
        UnsupportedField::unsupported("max_tokens_per_doc"),
        UnsupportedField::unsupported("max_chunks_per_doc"),
    ];
}

/// A document to rank.
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
    pub usage: PromptUsage,
    pub results: Vec<RerankResult>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RerankResult {
    /// Index in the request's `documents`.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankedDocument>,
    /// Score from the logit, by the function in the model's folder: the sigmoid, unless it names another.
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
    path = LISTED,
    request_body = RerankDocumentsRequest,
    responses(
        (status = 200, description = "The documents, best first", body = RerankResponse),
        (status = 400, description = "Not valid, or the model is no reranker; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn rerank(call: Received<RerankDocumentsRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    check_query(&request.query)?;
    if request.top_n == Some(0) {
        return Err(ApiError::validation(
            "top_n",
            "`top_n` must be strictly positive",
        ));
    }
    let by = Cut {
        truncate: request.truncate,
        truncate_prompt_tokens: request.truncate_prompt_tokens,
    };
    let preparation = preparation(&state, &info, "documents", request.documents.len(), by)?;
    let mut documents: Vec<String> = request
        .documents
        .into_iter()
        .map(Document::into_text)
        .collect();
    let (ranked, usage) = encoder
        .rank(&request.query, &documents, preparation)
        .await?;
    let shown = request.return_documents.unwrap_or(true);
    let results = ranked
        .into_iter()
        .take(request.top_n.unwrap_or(usize::MAX))
        .map(|text| RerankResult {
            index: text.index,
            document: shown.then(|| RerankedDocument {
                text: std::mem::take(&mut documents[text.index]),
            }),
            relevance_score: label_scores(&info, &[text.logit])[0],
        })
        .collect();
    let response = RerankResponse {
        id: format!("rerank-{}", uuid::Uuid::new_v4().simple()),
        model: state.served_name().to_owned(),
        usage: PromptUsage::new(usage.tokens),
        results,
    };
    Ok(accounting.respond_encoded(&response, &usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_strings_or_objects() {
        let read = |json: &str| serde_json::from_str::<Document>(json).map(Document::into_text);
        assert_eq!(read(r#""a""#).ok().as_deref(), Some("a"));
        assert_eq!(read(r#"{"text": "a", "id": 1}"#).ok().as_deref(), Some("a"));
        assert!(read(r#"{"title": "a"}"#).is_err());
    }
}
