//! `/decode`: the texts of tokens.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{ApiError, ErrorKind, ErrorResponse};
use crate::http::extract::{ApiJson, Body};
use crate::http::route::LISTED;
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;

/// What `/decode` takes.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct DecodeRequest {
    pub ids: DecodeIds,
    /// Leave special tokens out; true when left out.
    pub skip_special_tokens: Option<bool>,
}

impl Body for DecodeRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// The tokens of one text or of several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected an array of token ids, or an array of arrays of token ids"
)]
pub enum DecodeIds {
    One(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

/// Turn tokens into text.
#[utoipa::path(
    post, path = LISTED, request_body = DecodeRequest,
    responses(
        (status = 200, description = "A text for each array of tokens", body = Vec<String>),
        (status = 413, description = "Too many arrays", body = ErrorResponse),
    )
)]
pub async fn decode(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<DecodeRequest>,
) -> Result<Json<Vec<String>>, ApiError> {
    let lists = match request.ids {
        DecodeIds::One(ids) => vec![ids],
        DecodeIds::Many(lists) => lists,
    };
    state.encoder().check_number(lists.len(), "ids")?;
    let skip = request.skip_special_tokens.unwrap_or(true);
    let tokenizer = state.tokenizer().clone();
    let decoded = tokio::task::spawn_blocking(move || {
        let texts = lists.iter().map(|ids| tokenizer.decode(ids, skip));
        texts.collect::<Result<Vec<_>, _>>()
    });
    let texts = decoded
        .await
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("decoding failed: {error}")))?
        .map_err(|error| {
            ApiError::validation("ids", format!("`ids` cannot be decoded: {error}"))
        })?;
    Ok(Json(texts))
}
