//! `/tokenize` as text-embeddings-inference answers it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::types::{EncoderToken, TokenizeInputs, TokenizeRequest};
use crate::error::{ApiError, Dialect};
use crate::extract::ApiJson;
use crate::state::AppState;

/// What an encoder sees of texts: a list of tokens for each.
pub async fn tokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<TokenizeRequest>,
) -> Response {
    match run(&state, request).await {
        Ok(tokens) => Json(tokens).into_response(),
        Err(error) => error.into_response(Dialect::Tei),
    }
}

async fn run(
    state: &AppState,
    request: TokenizeRequest,
) -> Result<Vec<Vec<EncoderToken>>, ApiError> {
    let encoder = state.encoder();
    let texts = match request.inputs {
        TokenizeInputs::One(text) => vec![text],
        TokenizeInputs::Many(texts) => texts,
    };
    encoder.check_number(texts.len(), "inputs")?;
    let prompt = match request.prompt_name.as_deref() {
        None => String::new(),
        name => encoder.prompt(name)?.unwrap_or_default(),
    };
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    let tokenizer = state.tokenizer();
    let specials = tokenizer.get_added_tokens_decoder();
    let mut all = Vec::with_capacity(texts.len());
    for text in texts {
        let text = encoder.reading().apply(prompt.clone() + &text);
        let encoding = state
            .validator()
            .encode(text.clone(), add_special_tokens, "inputs")
            .await?;
        let tokens = encoding.ids.iter().zip(&encoding.offsets);
        all.push(
            tokens
                .map(|(&id, &(start, stop))| {
                    let special = specials.get(&id).is_some_and(|token| token.special);
                    EncoderToken {
                        id,
                        text: match text.get(start..stop) {
                            Some(part) if !special => part.to_owned(),
                            _ => tokenizer.id_to_token(id).unwrap_or_default(),
                        },
                        special,
                        start: (!special).then_some(start),
                        stop: (!special).then_some(stop),
                    }
                })
                .collect(),
        );
    }
    Ok(all)
}
