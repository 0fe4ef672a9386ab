//! `/tokenize` as text-embeddings-inference answers it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use tokenizers::Tokenizer;

use super::types::{EncoderToken, TokenizeInputs, TokenizeRequest};
use crate::error::ApiError;
use crate::http::extract::ApiJson;
use crate::http::json_stream;
use crate::state::AppState;
use crate::tokenizing::text_encoder::TokenizedText;

/// What an encoder sees of texts: a list of tokens for each.
pub async fn tokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<TokenizeRequest>,
) -> Result<Response, ApiError> {
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
    let mut texts_of_tokens = Vec::with_capacity(texts.len());
    for text in texts {
        let text = prompt.clone() + &text;
        let text = encoder.normalization().apply(&text).into_owned();
        let encoded = state
            .validator()
            .encode(text.clone(), add_special_tokens, "inputs")
            .await?;
        texts_of_tokens.push((text, encoded));
    }
    respond(state.tokenizer().clone(), texts_of_tokens)
}

/// The JSON of an array of arrays of [`EncoderToken`].
fn respond(
    tokenizer: Arc<Tokenizer>,
    texts: Vec<(String, TokenizedText)>,
) -> Result<Response, ApiError> {
    let held_bytes = texts
        .iter()
        .map(|(text, encoded)| text.len() + encoded.size_bytes())
        .sum();
    let (mut at_text, mut at_token) = (0, 0);
    let write = move |out: &mut Vec<u8>| {
        let Some((text, encoded)) = texts.get(at_text) else {
            return false;
        };
        if at_token == 0 {
            out.extend_from_slice(if at_text == 0 { b"[[" } else { b",[" });
        }
        let token = encoded.ids.get(at_token).zip(encoded.offsets.get(at_token));
        if let Some((&id, &range)) = token {
            if at_token > 0 {
                out.push(b',');
            }
            json_stream::push(out, &encoder_token(&tokenizer, text, id, range));
            at_token += 1;
            return true;
        }
        out.push(b']');
        (at_text, at_token) = (at_text + 1, 0);
        let is_last = at_text == texts.len();
        if is_last {
            out.push(b']');
        }
        !is_last
    };
    json_stream::response(write, held_bytes)
}

fn encoder_token(
    tokenizer: &Tokenizer,
    text: &str,
    id: u32,
    (start, stop): (usize, usize),
) -> EncoderToken {
    let specials = tokenizer.get_added_tokens_decoder();
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
}
