//! Handlers of `/generate` and `/`, which answer with the whole text at once.

use axum::Json;
use axum::response::Response;
use futures::StreamExt;
use futures::future::try_join_all;
use gridwork_engine::{Event, Finish, Generation};
use tokenizers::Tokenizer;

use super::admission::admit;
use super::stream::stream_response;
use super::tokens::{own_text, reported, reported_top};
use super::types::{
    BestOfSequence, CompatGenerateRequest, Details, GenerateRequest, GenerateResponse,
    PrefillToken, Token, check_best_of,
};
use crate::error::{ApiError, ErrorResponse};
use crate::generation::best_of::{self, MeanLogprob};
use crate::http::accounting::RequestAccounting;
use crate::http::route::{LISTED, Received};
use crate::state::AppState;

/// Continue a text.
#[utoipa::path(
    post, path = LISTED, request_body = GenerateRequest,
    responses(
        (status = 200, description = "The text", body = GenerateResponse),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 424, description = "The generation failed", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
        (status = 503, description = "Loading or shutting down; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn generate(call: Received<GenerateRequest>) -> Result<Response, ApiError> {
    let (state, request, mut accounting) = call.begin();
    let answer = run(&state, request, &mut accounting).await?;
    Ok(accounting.respond(Json(answer)))
}

/// Continue a text, or stream it: what `/generate` and `/generate_stream` do, on one route; `return_full_text` is true
/// when left out.
pub async fn compat_generate(call: Received<CompatGenerateRequest>) -> Result<Response, ApiError> {
    let Received {
        state,
        arrival,
        request,
    } = call;
    let CompatGenerateRequest {
        inputs,
        parameters,
        stream,
    } = request;
    let mut parameters = parameters.unwrap_or_default();
    // Clients of this route expect the whole text unless they say otherwise.
    parameters.return_full_text.get_or_insert(true);
    let request = GenerateRequest {
        inputs,
        parameters: Some(parameters),
    };
    if stream == Some(true) {
        let accounting = arrival.begin_stream(&state);
        return stream_response(&state, request, accounting).await;
    }
    let mut accounting = arrival.begin(&state);
    let answer = run(&state, request, &mut accounting).await?;
    Ok(accounting.respond(Json([answer])))
}

async fn run(
    state: &AppState,
    request: GenerateRequest,
    accounting: &mut RequestAccounting,
) -> Result<GenerateResponse, ApiError> {
    let GenerateRequest { inputs, parameters } = request;
    let parameters = parameters.unwrap_or_default();
    let best_of = parameters.best_of(state.settings().limits.max_best_of)?;
    let wants_details =
        parameters.details.unwrap_or(false) || parameters.decoder_input_details.unwrap_or(false);
    let full_text = parameters.return_full_text.unwrap_or(false);
    accounting
        .span
        .record("parameters", format!("{parameters:?}"));
    let parameters = parameters.translate(wants_details || best_of > 1, state.served_name())?;
    check_best_of(best_of, &parameters)?;
    let prefix = full_text.then(|| inputs.clone());
    let valid = admit(state, inputs, parameters, accounting).await?;
    let prompt_ids = match valid.request.logprobs.prompt {
        true => valid.prompt_ids().to_vec(),
        false => Vec::new(),
    };
    let mut sequences = Vec::with_capacity(best_of);
    for valid in valid.repeat(best_of) {
        let generation = state.engine().submit(valid.request)?;
        sequences.push(collect(
            generation,
            valid.seed,
            &prompt_ids,
            state.tokenizer(),
        ));
    }
    let mut sequences = try_join_all(sequences).await?;
    for sequence in &mut sequences {
        accounting.add(&sequence.finish);
        if let Some(prefix) = &prefix {
            sequence.text.insert_str(0, prefix);
        }
    }
    // The other sequences find in the cache what the first one computed.
    let cached = |sequence: &Collected| sequence.finish.num_cached_tokens;
    let cached_tokens = sequences.iter().map(cached).min().unwrap_or(0);
    best_of::sort(&mut sequences, Collected::mean_logprob);
    let best = sequences.remove(0);
    Ok(GenerateResponse {
        generated_text: best.text,
        details: wants_details.then(|| Details {
            finish_reason: (&best.finish.reason).into(),
            generated_tokens: best.finish.num_generated_tokens,
            cached_tokens,
            seed: best.seed,
            prefill: best.prefill,
            tokens: best.tokens,
            top_tokens: best.top_tokens,
            best_of_sequences: (best_of > 1)
                .then(|| sequences.into_iter().map(BestOfSequence::from).collect()),
        }),
    })
}

/// A complete sequence.
struct Collected {
    text: String,
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<Token>,
    top_tokens: Vec<Vec<Token>>,
    finish: Finish,
}

impl Collected {
    fn mean_logprob(&self) -> MeanLogprob {
        let mut mean = MeanLogprob::default();
        let logprobs = self.tokens.iter().map(|token| token.logprob);
        logprobs.for_each(|logprob| mean.add(Some(logprob)));
        mean
    }
}

impl From<Collected> for BestOfSequence {
    fn from(sequence: Collected) -> Self {
        BestOfSequence {
            generated_text: sequence.text,
            finish_reason: (&sequence.finish.reason).into(),
            generated_tokens: sequence.finish.num_generated_tokens,
            seed: sequence.seed,
            prefill: sequence.prefill,
            tokens: sequence.tokens,
            top_tokens: sequence.top_tokens,
        }
    }
}

async fn collect(
    mut generation: Generation,
    seed: Option<u64>,
    prompt_ids: &[u32],
    tokenizer: &Tokenizer,
) -> Result<Collected, ApiError> {
    let (mut text, mut tokens, mut top_tokens, mut prefill) =
        (String::new(), Vec::new(), Vec::new(), Vec::new());
    while let Some(event) = generation.next().await {
        match event? {
            Event::PromptLogprobs(logprobs) => {
                prefill = prompt_ids
                    .iter()
                    .zip(logprobs)
                    .map(|(&id, known)| PrefillToken {
                        id,
                        text: own_text(tokenizer, id),
                        logprob: known.logprob,
                    })
                    .collect();
            }
            Event::Token(mut token) => {
                text.push_str(&token.text);
                if !token.top.is_empty() {
                    top_tokens.push(reported_top(tokenizer, &token.top));
                }
                tokens.push(reported(tokenizer, &mut token));
                if let Some(finish) = token.finish {
                    return Ok(Collected {
                        text,
                        seed,
                        prefill,
                        tokens,
                        top_tokens,
                        finish,
                    });
                }
            }
        }
    }
    Err(gridwork_engine::GenerationError::Shutdown.into())
}
