//! `/embed`, `/embed_all`, `/embed_sparse` and `/similarity`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use gridwork_engine::Output;
use gridwork_proto::v1::Task;
use tracing::Span;

use super::account::Account;
use super::types::{EmbedRequest, SimilarityRequest, SparseValue, truncation};
use super::vectors::{Shape, cosine};
use crate::api::tgi::types::ErrorResponse;
use crate::encoder::{Answer, Input, Preparation, Usage};
use crate::error::{ApiError, Dialect};
use crate::http::extract::ApiJson;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// A vector for each input.
#[utoipa::path(
    post, path = "/embed", tag = "Encoders", request_body = EmbedRequest,
    responses(
        (status = 200, description = "The vectors, an array of one for a single input", body = Vec<Vec<f32>>),
        (status = 400, description = "Nothing to embed, or the model does not embed", body = ErrorResponse),
        (status = 413, description = "Too long, too many, or a value out of range", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn embed(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<EmbedRequest>,
) -> Response {
    let account = account(&headers, "embed", "/embed");
    account.respond(&state, run_embed(&state, request).await)
}

async fn run_embed(
    state: &AppState,
    request: EmbedRequest,
) -> Result<(Vec<Vec<f32>>, Usage), ApiError> {
    let info = state.encoder().ready(&[Task::Embed], "/embed")?;
    let shape = Shape::new(request.dimensions, request.normalize, &info)?;
    let answer = compute(state, request, Task::Embed, Output::Vector, "/embed").await?;
    let vectors = answer
        .results
        .into_iter()
        .map(|result| shape.apply(result.values))
        .collect();
    Ok((vectors, answer.usage))
}

/// A vector for each token of each input, not pooled and not normalized.
#[utoipa::path(
    post, path = "/embed_all", tag = "Encoders", request_body = EmbedRequest,
    responses(
        (status = 200, description = "For each input its tokens' vectors", body = Vec<Vec<Vec<f32>>>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn embed_all(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<EmbedRequest>,
) -> Response {
    let account = account(&headers, "embed_all", "/embed_all");
    account.respond(&state, run_embed_all(&state, request).await)
}

async fn run_embed_all(
    state: &AppState,
    request: EmbedRequest,
) -> Result<(Vec<Vec<Vec<f32>>>, Usage), ApiError> {
    let path = "/embed_all";
    refuse_shape(&request, path)?;
    let answer = compute(state, request, Task::Embed, Output::TokenVectors, path).await?;
    let vectors = answer
        .results
        .iter()
        .zip(&answer.lengths)
        .map(|(result, length)| {
            let size = result.values.len() / length;
            result
                .values
                .chunks_exact(size.max(1))
                .map(<[f32]>::to_vec)
                .collect()
        })
        .collect();
    Ok((vectors, answer.usage))
}

/// A sparse vector over the vocabulary for each input, as SPLADE models make them; of masked language models.
#[utoipa::path(
    post, path = "/embed_sparse", tag = "Encoders", request_body = EmbedRequest,
    responses(
        (status = 200, description = "For each input the tokens that have a weight", body = Vec<Vec<SparseValue>>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn embed_sparse(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<EmbedRequest>,
) -> Response {
    let account = account(&headers, "embed_sparse", "/embed_sparse");
    account.respond(&state, run_embed_sparse(&state, request).await)
}

async fn run_embed_sparse(
    state: &AppState,
    request: EmbedRequest,
) -> Result<(Vec<Vec<SparseValue>>, Usage), ApiError> {
    let path = "/embed_sparse";
    refuse_shape(&request, path)?;
    let answer = compute(state, request, Task::FillMask, Output::Sparse, path).await?;
    let sparse = answer
        .results
        .into_iter()
        .map(|result| {
            result
                .token_ids
                .into_iter()
                .zip(result.values)
                .map(|(index, value)| SparseValue { index, value })
                .collect()
        })
        .collect();
    Ok((sparse, answer.usage))
}

/// How similar sentences are to one: the cosines of the angles between their vectors.
#[utoipa::path(
    post, path = "/similarity", tag = "Encoders", request_body = SimilarityRequest,
    responses(
        (status = 200, description = "A number from -1 to 1 for each sentence", body = Vec<f32>),
        (status = 413, description = "Too long, or too many", body = ErrorResponse),
    )
)]
pub async fn similarity(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<SimilarityRequest>,
) -> Response {
    let account = account(&headers, "similarity", "/similarity");
    account.respond(&state, run_similarity(&state, request).await)
}

async fn run_similarity(
    state: &AppState,
    request: SimilarityRequest,
) -> Result<(Vec<f32>, Usage), ApiError> {
    let encoder = state.encoder();
    let info = encoder.ready(&[Task::Embed], "/similarity")?;
    let parameters = request.parameters.unwrap_or_default();
    encoder.check_number(request.inputs.sentences.len(), "inputs.sentences")?;
    let preparation = Preparation {
        field: "inputs",
        truncation: Some(truncation(
            state,
            parameters.truncate,
            parameters.truncation_direction,
        )),
        prompt: encoder.prompt(parameters.prompt_name.as_deref())?,
        max_tokens: encoder.max_input_tokens(&info),
        vocab_size: info.vocab_size,
    };
    let texts = std::iter::once(request.inputs.source_sentence).chain(request.inputs.sentences);
    let answer = encoder
        .encode(
            texts.map(Input::Text).collect(),
            preparation,
            Output::Vector.into(),
            |_| Ok(()),
        )
        .await?;
    let (source, others) = match answer.results.split_first() {
        Some((source, others)) => (&source.values, others),
        None => return Ok((vec![], answer.usage)),
    };
    let similarities = others
        .iter()
        .map(|other| cosine(source, &other.values))
        .collect();
    Ok((similarities, answer.usage))
}

fn account(headers: &HeaderMap, route: &'static str, path: &'static str) -> Account {
    let span: Span = request_span(headers, "POST", path);
    Account::begin(route, Dialect::Tei, span)
}

/// `normalize` and `dimensions` are for pooled vectors.
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

fn preparation(
    state: &AppState,
    request: &EmbedRequest,
    task: Task,
    path: &str,
) -> Result<Preparation, ApiError> {
    let encoder = state.encoder();
    let info = encoder.ready(&[task], path)?;
    let has_tokens = request
        .inputs
        .items
        .iter()
        .any(|input| matches!(input, Input::Tokens(_)));
    if has_tokens && request.prompt_name.is_some() {
        return Err(ApiError::validation(
            "prompt_name",
            "`prompt_name` is for texts, and `inputs` has token ids",
        ));
    }
    Ok(Preparation {
        field: "inputs",
        truncation: Some(request.truncation(state)),
        prompt: encoder.prompt(request.prompt_name.as_deref())?,
        max_tokens: encoder.max_input_tokens(&info),
        vocab_size: info.vocab_size,
    })
}

async fn compute(
    state: &AppState,
    request: EmbedRequest,
    task: Task,
    output: Output,
    path: &str,
) -> Result<Answer, ApiError> {
    let preparation = preparation(state, &request, task, path)?;
    state
        .encoder()
        .encode(request.inputs.items, preparation, output.into(), |_| Ok(()))
        .await
}
