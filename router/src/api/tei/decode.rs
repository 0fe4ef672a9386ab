//! `/decode`: the texts of tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{ApiError, ErrorResponse};
use crate::http::extract::{ApiJson, Body};
use crate::http::route::LISTED;
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;
use crate::tokenizing::vocabulary;

/// Body of `/decode`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct DecodeRequest {
    pub ids: DecodeIds,
    /// Skip special tokens; true when left out.
    pub skip_special_tokens: Option<bool>,
}

impl Body for DecodeRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Token ids of one text or of several.
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
        (status = 413, description = "Too many arrays, or a token is unknown", body = ErrorResponse),
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
    let tokenizer = Arc::clone(state.tokenizer());
    let bytes = lists.iter().map(|ids| size_of_val(ids.as_slice())).sum();
    let decoding = state.workers().run(bytes, move || {
        let texts = lists
            .iter()
            .map(|ids| vocabulary::decode(&tokenizer, "ids", ids, skip));
        texts.collect::<Result<Vec<_>, _>>()
    });
    let texts = decoding.await??;
    Ok(Json(texts))
}
