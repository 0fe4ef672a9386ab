//! `POST /v1/chat/completions`.

use axum::Json;
use axum::response::Response;

use super::answer::Streaming;
use super::answer_grammar::{answer_grammar, format_for};
use super::chat_request::ChatRequest;
use super::choice::RunningChoice;
use super::chunk::{AnswerKind, Identity};
use super::parsed_choice::{self, CallForm, ChoiceParser};
use super::prompt_logprobs;
use super::request::{StreamOptions, num_choices};
use super::response::{
    ChatChoice, ChatCompletion, ChatLogprobs, OpenAiFinishReason, StopReason, Usage,
};
use super::returned_tokens::ReturnedTokens;
use super::submit::GenerationJob;
use crate::chat_template::{Message, RenderOptions};
use crate::connections::intake::Ticket;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::grammar::Grammar;
use crate::http::accounting::RequestAccounting;
use crate::http::route::{LISTED, Received};
use crate::state::AppState;
use crate::tokenizing::token_text::TokenTexts;
use crate::tool_calls::Plan;

/// Answer a conversation
///
/// With `stream`, the answer is a stream of server-sent events: `data: ` and a chunk each, and `data: [DONE]` at the
/// end. An invalid request is refused with its status before the stream begins. A later failure is an event
/// `data: {"error": …}`, which ends the stream.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, chunks of it", content(
            (ChatCompletion = "application/json"),
            (super::response::ChatCompletionChunk = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn chat_completions(call: Received<ChatRequest>) -> Result<Response, ApiError> {
    let (state, request, mut accounting) = call.begin();
    let state = &state;
    let stream = request.stream.unwrap_or(false);
    let stream_options = StreamOptions::of(stream, request.stream_options)?;
    let chat = Chat::new(state, request, &ChatForm::OPENAI)?;
    let logprobs = chat.logprobs;
    let shows_reasoning = chat.shows_reasoning();
    let calls = chat.call_form();
    let Submitted { mut choices, plan } = chat.submit(state, &mut accounting).await?;
    if let Some(plan) = &plan {
        for choice in &mut choices {
            choice.parser = Some(ChoiceParser::new(plan, shows_reasoning, calls));
        }
    }
    let identity = Identity::new("chatcmpl", state);
    if stream {
        let streaming = Streaming {
            kind: AnswerKind::Chat,
            identity,
            options: stream_options,
            with_logprobs: logprobs.is_some(),
        };
        return Ok(streaming.response(state, choices, accounting));
    }
    let body = collect(
        state,
        identity,
        choices,
        &mut accounting,
        logprobs.is_some(),
    )
    .await?;
    Ok(accounting.respond(Json(body)))
}

/// Makes other messages of those that a chat template refuses; `None`: there are no others.
pub type Fallback = fn(&[Message]) -> Option<Vec<Message>>;

/// Form in which an API asks for a chat.
#[derive(Debug, Clone, Copy)]
pub struct ChatForm {
    pub dialect: Dialect,
    /// Name of the conversation's field, for errors.
    pub prompt: &'static str,
    /// Name of the field with the maximum number of generated tokens; `None`: OpenAI's names, by the one that is given.
    pub max_new_tokens: Option<&'static str>,
    /// Lower a maximum number of generated tokens that does not fit into the context, rather than refuse it.
    pub clamps: bool,
    /// Other messages for a chat template that refuses the given ones.
    pub fallback: Option<Fallback>,
}

impl ChatForm {
    /// Form of `/v1/chat/completions`.
    pub const OPENAI: Self = ChatForm {
        dialect: Dialect::OpenAi,
        prompt: "messages",
        max_new_tokens: None,
        clamps: false,
        fallback: None,
    };
}

/// The running choices of a chat.
pub struct Submitted {
    /// The choices, sorted by index.
    pub choices: Vec<RunningChoice>,
    /// How their texts are parsed; `None`: everything is content.
    pub plan: Option<Plan>,
}

/// A prompt made of a conversation.
struct ChatPrompt {
    text: String,
    /// True if the tokenizer's special tokens go before it.
    add_special_tokens: bool,
    plan: Option<Plan>,
    /// Grammar that the answer follows.
    grammar: Option<Grammar>,
}

/// A checked conversation, ready to be rendered and generated. Every API with conversations makes one.
#[derive(Debug)]
pub struct Chat {
    request: ChatRequest,
    parameters: Parameters,
    names: FieldNames,
    num_choices: u32,
    fallback: Option<Fallback>,
    /// Number of alternatives to report for each token; `None`: no log-probabilities at all.
    pub logprobs: Option<u32>,
}

impl Chat {
    /// Checks `request`, before anything is rendered.
    pub fn new(
        state: &AppState,
        mut request: ChatRequest,
        form: &ChatForm,
    ) -> Result<Self, ApiError> {
        request.prepare()?;
        let mut parameters = request.take_parameters()?;
        let (mut limit_field, limit) = request.limit();
        parameters.max_new_tokens = limit;
        if let Some(config) = request.generation_config.take() {
            if limit.is_none() && config.max_new_tokens.is_some() {
                limit_field = "generation_config.max_new_tokens";
            }
            request.n = request.n.or(config.num_return_sequences);
            config.apply(&mut parameters)?;
        }
        parameters.clamps_max_new_tokens = form.clamps;
        let limits = &state.settings().limits;
        let num_choices = num_choices(
            "n",
            request.n,
            1,
            limits.max_n,
            limits.max_concurrent_requests,
        )?;
        let logprobs = logprobs(&request)?;
        let stream = request.stream.unwrap_or(false);
        prompt_logprobs::check(request.prompt_logprobs, limits.max_top_n_tokens, stream)?;
        state.ready()?;
        Ok(Chat {
            parameters: Parameters {
                logprobs: logprobs.is_some(),
                top_n_tokens: logprobs,
                prompt_logprobs: request.prompt_logprobs.is_some(),
                prompt_top_n: request.prompt_logprobs.unwrap_or(0),
                ..parameters
            },
            names: FieldNames {
                dialect: form.dialect,
                prompt: form.prompt,
                max_new_tokens: form.max_new_tokens.unwrap_or(limit_field),
                top_n_tokens: "top_logprobs",
            },
            request,
            num_choices,
            fallback: form.fallback,
            logprobs,
        })
    }

    /// True if reasoning is part of the answer.
    pub fn shows_reasoning(&self) -> bool {
        self.request.include_reasoning.unwrap_or(true)
    }

    /// Form in which the answer has calls.
    fn call_form(&self) -> CallForm {
        match self.request.has_functions() {
            true => CallForm::Function,
            false => CallForm::Tools,
        }
    }

    /// Renders the conversation and submits its choices.
    pub async fn submit(
        mut self,
        state: &AppState,
        accounting: &mut RequestAccounting,
    ) -> Result<Submitted, ApiError> {
        let request = std::mem::take(&mut self.request);
        let return_token_ids = request.return_token_ids.unwrap_or(false);
        let grammar = self.parameters.grammar.take();
        let ChatPrompt {
            text,
            add_special_tokens,
            plan,
            grammar,
        } = prompt_of(state, request, grammar, self.fallback).await?;
        self.parameters.grammar = grammar;
        if let Some(plan) = &plan {
            self.parameters.shown_special_tokens = state.chat_format().shown_tokens(plan);
        }
        let job = GenerationJob {
            prompts: vec![Prompt::Text {
                text,
                add_special_tokens,
            }],
            parameters: self.parameters,
            names: self.names,
            num_choices: self.num_choices,
            default_limit: None,
            echo: false,
            echo_only: false,
            return_token_ids,
        };
        let choices = job.submit(state, accounting).await?;
        Ok(Submitted { choices, plan })
    }

    /// The prompt that the conversation becomes: its text and its tokens.
    pub async fn tokens(self, state: &AppState) -> Result<(String, Vec<u32>), ApiError> {
        let ChatPrompt {
            text,
            add_special_tokens,
            ..
        } = prompt_of(state, self.request, None, self.fallback).await?;
        let encoded = state
            .validator()
            .encode(text.clone(), add_special_tokens, self.names.prompt)
            .await?;
        Ok((text, encoded.ids))
    }
}

/// Number of alternatives to report for each token; `None`: no log-probabilities at all.
fn logprobs(request: &ChatRequest) -> Result<Option<u32>, ApiError> {
    match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::validation(
            "top_logprobs",
            "`top_logprobs` is only allowed when `logprobs` is true",
        )),
    }
}

/// Renders the conversation with the model's chat template. Also returns whether the tokenizer's special tokens go
/// before it. Runs on a worker thread, because a template may take long.
pub async fn chat_prompt(
    state: &AppState,
    request: ChatRequest,
) -> Result<(String, bool), ApiError> {
    let prompt = prompt_of(state, request, None, None).await?;
    Ok((prompt.text, prompt.add_special_tokens))
}

async fn prompt_of(
    state: &AppState,
    request: ChatRequest,
    grammar: Option<Grammar>,
    fallback: Option<Fallback>,
) -> Result<ChatPrompt, ApiError> {
    let bytes = Ticket::current().map_or(0, |ticket| ticket.bytes());
    let of_work = state.clone();
    let rendering = state
        .workers()
        .run(bytes, move || render(&of_work, &request, grammar, fallback));
    rendering.await?
}

fn render(
    state: &AppState,
    request: &ChatRequest,
    grammar: Option<Grammar>,
    fallback: Option<Fallback>,
) -> Result<ChatPrompt, ApiError> {
    let (add_generation_prompt, continue_final_message) = request.continuation()?;
    let variables = request.template_variables();
    let options = RenderOptions {
        add_generation_prompt,
        continue_final_message,
        variables: Some(&variables),
    };
    let rendered = match state.chat_template() {
        Ok(template) => template
            .render(&request.messages, &options)
            .or_else(|error| {
                let others = fallback.and_then(|fallback| fallback(&request.messages));
                others.map_or(Err(error), |others| template.render(&others, &options))
            }),
        Err(error) => Err(error.clone()),
    };
    let text = rendered.map_err(|error| ApiError {
        field: Some("messages".into()),
        ..ApiError::new(ErrorKind::Template, error.to_string())
    })?;
    let tools = request.tools()?;
    let format = format_for(&state.chat_format().format, &tools.choice);
    let plan = Plan::new(format, tools.callable(), true, &text).map(|plan| Plan {
        single_call: request.parallel_tool_calls == Some(false),
        separate_reasoning: request.separate_reasoning.unwrap_or(true),
        ..plan
    });
    let grammar = match &plan {
        Some(plan) => {
            let special = &state.chat_format().special_tokens;
            answer_grammar(plan, &tools.choice, grammar, special)?
        }
        None => grammar,
    };
    Ok(ChatPrompt {
        text,
        grammar,
        // Special tokens are left to the template.
        add_special_tokens: request.add_special_tokens.unwrap_or(false),
        plan,
    })
}

async fn collect(
    state: &AppState,
    identity: Identity,
    mut running: Vec<RunningChoice>,
    accounting: &mut RequestAccounting,
    with_logprobs: bool,
) -> Result<ChatCompletion, ApiError> {
    let texts = TokenTexts::new(state.tokenizer());
    let mut choices = Vec::with_capacity(running.len());
    let mut generated_tokens = 0;
    for choice in &mut running {
        let mut parser = choice.parser.take();
        let mut message = parsed_choice::empty_message();
        let mut logprobs = with_logprobs.then(ChatLogprobs::default);
        let finish = choice
            .collect(false, |piece| {
                if let Some(logprobs) = &mut logprobs {
                    piece.add_to_chat(texts, logprobs);
                }
                let is_last = piece.token.finish.is_some();
                let text = piece.text();
                match &mut parser {
                    Some(parser) => {
                        let deltas = parser.push(&text, is_last);
                        deltas
                            .into_iter()
                            .for_each(|delta| parsed_choice::add(&mut message, delta));
                    }
                    None => message.content.get_or_insert_default().push_str(&text),
                }
            })
            .await?;
        parsed_choice::complete(&mut message);
        let mut finish_reason = OpenAiFinishReason::from(&finish.reason);
        if let Some(parser) = &parser {
            finish_reason = parser.finish_reason(finish_reason);
        }
        choice.parser = parser;
        accounting.add(&finish);
        generated_tokens += choice.num_counted();
        let returned = choice.returned.as_ref();
        choices.push(ChatChoice {
            token_ids: returned.map(|tokens| tokens.ids().to_vec()),
            logprobs_by_id: returned
                .filter(|_| with_logprobs)
                .map(|tokens| tokens.logprobs(texts)),
            index: choice.index,
            message,
            logprobs,
            finish_reason,
            stop_reason: StopReason::of(&finish.reason),
        });
    }
    Ok(ChatCompletion {
        id: identity.id,
        object: "chat.completion".into(),
        created: identity.created,
        model: identity.model,
        system_fingerprint: identity.system_fingerprint,
        choices,
        prompt_logprobs: running
            .first()
            .and_then(|choice| choice.prompt_entries(texts)),
        prompt_token_ids: running
            .first_mut()
            .and_then(|choice| choice.returned.as_mut())
            .and_then(ReturnedTokens::take_prompt_ids),
        usage: Usage::new(accounting.prompt_tokens as u64, generated_tokens)
            .with_cached_tokens(RunningChoice::sum_cached(&running))
            .with_reasoning_tokens(RunningChoice::sum_reasoning(&running)),
    })
}
