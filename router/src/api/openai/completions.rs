//! `POST /v1/completions`.

use axum::Json;
use axum::response::Response;

use super::answer::Streaming;
use super::choice::RunningChoice;
use super::chunk::{AnswerKind, Identity};
use super::completion_request::{CompletionRequest, DEFAULT_MAX_TOKENS};
use super::prompt_logprobs;
use super::request::{StreamOptions, num_choices};
use super::response::{
    Completion, CompletionChoice, CompletionLogprobs, OpenAiFinishReason, Usage,
};
use super::returned_tokens::ReturnedTokens;
use super::submit::GenerationJob;
use crate::error::{ApiError, Dialect};
use crate::generation::best_of::{self, MeanLogprob};
use crate::generation::parameters::{FieldNames, Parameters};
use crate::http::accounting::RequestAccounting;
use crate::http::route::{LISTED, Received};
use crate::state::AppState;
use crate::tokenizing::token_text::TokenTexts;

/// Continue a text
///
/// With `stream`, the answer is a stream of server-sent events: `data: ` and a chunk each, and `data: [DONE]` at the
/// end. An invalid request is refused with its status before the stream begins. A later failure is an event
/// `data: {"error": …}`, which ends the stream.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, chunks of it", content(
            (Completion = "application/json"),
            (super::response::CompletionChunk = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn completions(call: Received<CompletionRequest>) -> Result<Response, ApiError> {
    let (state, mut request, mut accounting) = call.begin();
    let state = &state;
    request.check_supported(state.config().max_client_batch_size)?;
    let parameters = request.take_parameters()?;
    let echo = request.echo.unwrap_or(false);
    let prompts = request.take_prompts(state.tokenizer())?;
    let candidates = request.candidates();
    let (field, asked) = match candidates {
        Some(candidates) => ("best_of", Some(candidates)),
        None => ("n", request.n),
    };
    let num_choices = num_choices(
        field,
        asked,
        prompts.len(),
        state.settings().limits.max_n,
        state.settings().limits.max_concurrent_requests,
    )?;
    let stream = request.stream.unwrap_or(false);
    let stream_options = StreamOptions::of(stream, request.stream_options)?;
    let with_logprobs = request.logprobs.is_some();
    let most = state.settings().limits.max_top_n_tokens;
    prompt_logprobs::check(request.prompt_logprobs, most, stream)?;
    state.ready()?;

    let job = GenerationJob {
        prompts,
        parameters: Parameters {
            // The engine generates at least one token.
            max_new_tokens: request.max_tokens.map(|tokens| tokens.max(1)),
            logprobs: with_logprobs || candidates.is_some(),
            top_n_tokens: request.logprobs,
            prompt_logprobs: with_logprobs && echo || request.prompt_logprobs.is_some(),
            prompt_top_n: request
                .prompt_logprobs
                .or(request.logprobs.filter(|_| echo))
                .unwrap_or(0),
            ..parameters
        },
        names: FieldNames {
            dialect: Dialect::OpenAi,
            prompt: "prompt",
            max_new_tokens: "max_tokens",
            top_n_tokens: "logprobs",
        },
        num_choices,
        default_limit: request.max_tokens.is_none().then_some(DEFAULT_MAX_TOKENS),
        echo,
        echo_only: request.max_tokens == Some(0),
        return_token_ids: request.return_token_ids.unwrap_or(false),
    };
    let choices = job.submit(state, &mut accounting).await?;
    let identity = Identity::new("cmpl", state);
    if stream {
        let streaming = Streaming {
            kind: AnswerKind::Completion,
            identity,
            options: stream_options,
            with_logprobs,
        };
        return Ok(streaming.response(state, choices, accounting));
    }
    let reported = Reported {
        logprobs: with_logprobs,
        prompt_logprobs: request.prompt_logprobs.is_some(),
        best: candidates.map(|candidates| (candidates, request.n.unwrap_or(1))),
    };
    let body = collect(state, identity, choices, &mut accounting, reported).await?;
    Ok(accounting.respond(Json(body)))
}

/// The answer's share of the choices.
#[derive(Debug, Clone, Copy)]
struct Reported {
    logprobs: bool,
    prompt_logprobs: bool,
    /// Numbers of choices for each prompt: those to choose from, and the best of them; `None`: all choices.
    best: Option<(u32, u32)>,
}

async fn collect(
    state: &AppState,
    identity: Identity,
    mut running: Vec<RunningChoice>,
    accounting: &mut RequestAccounting,
    reported: Reported,
) -> Result<Completion, ApiError> {
    let texts = TokenTexts::new(state.tokenizer());
    let mut choices: Vec<(CompletionChoice, MeanLogprob)> = Vec::with_capacity(running.len());
    let mut generated_tokens = 0;
    for choice in &mut running {
        let mut text = String::new();
        let mut logprobs = reported.logprobs.then(CompletionLogprobs::default);
        let (mut finish_reason, mut stop_reason) = (OpenAiFinishReason::Length, None);
        let mut mean = MeanLogprob::default();
        let finish = choice
            .collect(reported.logprobs, |piece| {
                mean.add(piece.token.logprob);
                if let Some(logprobs) = &mut logprobs {
                    piece.add_to_completion(texts, logprobs);
                }
                finish_reason = piece.finish_reason().unwrap_or(finish_reason);
                stop_reason = piece.stop_reason();
                text.push_str(&piece.text());
            })
            .await?;
        if let Some(logprobs) = &mut logprobs {
            logprobs.end_at(choice.num_chars());
        }
        accounting.add(&finish);
        generated_tokens += choice.num_counted();
        let mut returned = choice.returned.take();
        let reported = CompletionChoice {
            token_ids: returned.as_ref().map(|tokens| tokens.ids().to_vec()),
            logprobs_by_id: returned
                .as_ref()
                .filter(|_| reported.logprobs)
                .map(|tokens| tokens.logprobs(texts)),
            prompt_token_ids: returned.as_mut().and_then(ReturnedTokens::take_prompt_ids),
            index: choice.index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
            prompt_logprobs: choice
                .prompt_entries(texts)
                .filter(|_| reported.prompt_logprobs),
        };
        choices.push((reported, mean));
    }
    Ok(Completion {
        id: identity.id,
        object: "text_completion".into(),
        created: identity.created,
        model: identity.model,
        system_fingerprint: identity.system_fingerprint,
        choices: chosen(choices, reported.best),
        usage: Usage::new(accounting.prompt_tokens as u64, generated_tokens)
            .with_cached_tokens(RunningChoice::sum_cached(&running)),
    })
}

/// The choices to answer with: all, or of each prompt the best, which come first.
fn chosen(
    mut choices: Vec<(CompletionChoice, MeanLogprob)>,
    best: Option<(u32, u32)>,
) -> Vec<CompletionChoice> {
    let mut chosen = Vec::with_capacity(choices.len());
    let (of_prompt, num_best) = best.unwrap_or((1, 1));
    for candidates in choices.chunks_mut(of_prompt as usize) {
        best_of::sort(candidates, |(_, mean)| *mean);
        let best = candidates.iter().take(num_best as usize);
        chosen.extend(best.map(|(choice, _)| choice.clone()));
    }
    for (index, choice) in chosen.iter_mut().enumerate() {
        choice.index = index as u32;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_choices_of_each_prompt_are_numbered_anew() {
        let choice = |index: u32, logprob: f32| {
            let mut mean = MeanLogprob::default();
            mean.add(Some(logprob));
            let choice = CompletionChoice {
                token_ids: None,
                logprobs_by_id: None,
                prompt_token_ids: None,
                index,
                text: index.to_string(),
                logprobs: None,
                finish_reason: OpenAiFinishReason::Length,
                stop_reason: None,
                prompt_logprobs: None,
            };
            (choice, mean)
        };
        let logprobs = [-3.0, -1.0, -2.0, -1.0, -5.0, -4.0];
        let choices: Vec<_> = (0..).zip(logprobs).map(|(i, p)| choice(i, p)).collect();
        let texts = |best| {
            let chosen = chosen(choices.clone(), best);
            assert!(
                chosen
                    .iter()
                    .map(|choice| choice.index)
                    .eq(0..chosen.len() as u32)
            );
            let texts = chosen.into_iter().map(|choice| choice.text);
            texts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(texts(None), "0 1 2 3 4 5");
        assert_eq!(texts(Some((3, 1))), "1 3");
        assert_eq!(texts(Some((3, 2))), "1 2 3 5");
    }
}
