//! `/tokenize` and `/detokenize` in vLLM's form: the tokens of a text or of a conversation, and the text of tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;
use utoipa::ToSchema;

use super::chat::chat_prompt;
use super::chat_request::ChatRequest;
use crate::error::ApiError;
use crate::http::extract::{self, ApiJson, Body};
use crate::http::json_stream;
use crate::http::route::LISTED;
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;
use crate::tokenizing::vocabulary;

/// Body of `/tokenize`, apart from the conversation, which is read as a [`ChatRequest`]: its tokens are then those of the
/// same chat.
#[derive(Debug, Clone, Deserialize)]
struct TokenizeRequest {
    /// The text; `None`: a conversation.
    prompt: Option<String>,
    /// Add the tokenizer's special tokens to the text; true when left out.
    add_special_tokens: Option<bool>,
    /// Answer also with each token as the vocabulary writes it.
    return_token_strs: Option<bool>,
}

impl Body for TokenizeRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Body of `/detokenize`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// Token ids, special tokens included.
    pub tokens: Vec<u32>,
}

impl Body for DetokenizeRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Text of tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    pub prompt: String,
}

/// Tokenizes the `prompt` of a body, or the conversation in its `messages`.
pub async fn tokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let max_model_len = max_model_len(&state)?;
    let body = extract::read(request, state.settings().http.payload_limit).await?;
    let parsed = extract::off_the_serving_threads(body, &state, |body| {
        let request: TokenizeRequest = extract::parse(body)?;
        let chat = match request.prompt {
            Some(_) => None,
            None => Some(extract::parse::<ChatRequest>(body)?),
        };
        Ok::<_, ApiError>((request, chat))
    });
    let (request, chat) = parsed.await??;
    let (text, add_special_tokens, field) = match chat {
        Some(mut chat) => {
            chat.prepare()?;
            let (text, add_special_tokens) = chat_prompt(&state, chat).await?;
            (text, add_special_tokens, "messages")
        }
        None => {
            let text = request.prompt.unwrap_or_default();
            let text = match state.encoder().loaded() {
                Some(_) => state.encoder().normalization().apply(&text).into_owned(),
                None => text,
            };
            (text, request.add_special_tokens.unwrap_or(true), "prompt")
        }
    };
    let encoded = state
        .validator()
        .encode(text, add_special_tokens, field)
        .await?;
    let with_texts = request.return_token_strs.unwrap_or(false);
    let tokenizer = with_texts.then(|| Arc::clone(state.tokenizer()));
    respond(encoded.ids, max_model_len, tokenizer)
}

/// Turn tokens into the text that they stand for.
#[utoipa::path(
    post, path = LISTED, request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "Their text", body = DetokenizeResponse),
        (status = 400, description = "Not valid, or a token is unknown; `param` names the field"),
    )
)]
pub async fn detokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let tokenizer = Arc::clone(state.tokenizer());
    let bytes = size_of_val(request.tokens.as_slice());
    let decoding = state.workers().run(bytes, move || {
        vocabulary::decode(&tokenizer, "tokens", &request.tokens, false)
    });
    let prompt = decoding.await??;
    Ok(Json(DetokenizeResponse { prompt }))
}

/// Maximum number of tokens of a request: prompt and answer of a generator, input of an encoder.
fn max_model_len(state: &AppState) -> Result<usize, ApiError> {
    match state.encoder().loaded() {
        Some(info) => Ok(state.encoder().max_input_tokens(&info)),
        None => Ok(state.ready()?.limits.max_total_tokens as usize),
    }
}

/// Answers with `{"count", "max_model_len", "tokens", "token_strs"}`. `tokenizer`: writes the tokens' texts too.
fn respond(
    ids: Vec<u32>,
    max_model_len: usize,
    tokenizer: Option<Arc<Tokenizer>>,
) -> Result<Response, ApiError> {
    let held_bytes = size_of_val(ids.as_slice());
    let count = ids.len();
    let mut next = 0;
    let write = move |out: &mut Vec<u8>| {
        let at = next;
        next += 1;
        if at == 0 {
            let head =
                format!("{{\"count\":{count},\"max_model_len\":{max_model_len},\"tokens\":[");
            out.extend_from_slice(head.as_bytes());
        }
        // The ids are written first. After them comes a second round, with their texts.
        if let Some(id) = ids.get(at) {
            separate(out, at);
            json_stream::push(out, id);
            return true;
        }
        let in_texts = at - count;
        if in_texts == 0 {
            out.extend_from_slice(b"],\"token_strs\":");
        }
        let Some(tokenizer) = &tokenizer else {
            out.extend_from_slice(b"null}");
            return false;
        };
        if in_texts == 0 {
            out.push(b'[');
        }
        let Some(&id) = ids.get(in_texts) else {
            out.extend_from_slice(b"]}");
            return false;
        };
        separate(out, in_texts);
        json_stream::push(out, &tokenizer.id_to_token(id).unwrap_or_default());
        true
    };
    json_stream::response(write, held_bytes)
}

/// Writes the comma before an element of an array that is not the first.
fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use serde_json::{Value, json};

    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": {"type": "Fuse"},
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "WordLevel", "unk_token": "<s>", "vocab": {"<s>": 0, "a": 1, "b": 2}}
        });
        Arc::new(Tokenizer::from_str(&json.to_string()).expect("a tokenizer"))
    }

    async fn answer(ids: &[u32], tokenizer: Option<Arc<Tokenizer>>) -> Value {
        let response = respond(ids.to_vec(), 64, tokenizer).expect("an answer");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        serde_json::from_slice(&body.expect("a body")).expect("JSON")
    }

    #[tokio::test]
    async fn tokens_have_their_texts_when_requested() {
        assert_eq!(
            answer(&[0, 2, 1], None).await,
            json!({"count": 3, "max_model_len": 64, "tokens": [0, 2, 1], "token_strs": null})
        );
        assert_eq!(
            answer(&[0, 2, 1], Some(tokenizer())).await["token_strs"],
            json!(["<s>", "b", "a"])
        );
        assert_eq!(
            answer(&[], Some(tokenizer())).await,
            json!({"count": 0, "max_model_len": 64, "tokens": [], "token_strs": []})
        );
        let many = vec![1; 100_000];
        assert_eq!(answer(&many, None).await["tokens"], json!(many));
    }
}
