//! A choice while it is generated: reads the engine's events and turns them into pieces of an answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use gridwork_engine::{Event, Finish, GeneratedToken, Generation, GenerationError, PromptLogprob};

use super::parsed_choice::ChoiceParser;
use super::prompt_logprobs::{self, PromptLogprobs};
use super::response::{ChatLogprobs, CompletionLogprobs, OpenAiFinishReason, StopReason};
use super::returned_tokens::{ReturnedFields, ReturnedTokens};
use crate::tokenizing::token_text::TokenTexts;

/// The prompt that a completion with `echo` begins with. The choices of a prompt share it.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    /// The prompt's text.
    pub text: String,
    pub ids: Vec<u32>,
    /// Offset of each token in the text, in characters. Empty when no log-probabilities are reported.
    pub offsets: Vec<u64>,
}

/// Stream of a choice's events, from the engine or from a test.
pub trait Events: Stream<Item = Result<Event, GenerationError>> + Unpin + Send + 'static {}
impl<S: Stream<Item = Result<Event, GenerationError>> + Unpin + Send + 'static> Events for S {}

/// A choice of an answer, while it is generated.
#[derive(Debug)]
pub struct RunningChoice<S = Generation> {
    pub index: u32,
    /// Index of the prompt that it continues.
    prompt: usize,
    events: S,
    /// Echo to begin the text with; taken by the first piece.
    echo: Option<Arc<Echo>>,
    /// Show only the prompt, and nothing that is generated.
    echo_only: bool,
    prompt_logprobs: Vec<PromptLogprob>,
    /// Tokens of the prompt, when their log-probabilities are reported.
    pub prompt_ids: Option<Arc<[u32]>>,
    /// Tokens to show beside the text; `None` if the request does not ask for them.
    pub returned: Option<ReturnedTokens>,
    /// Number of characters of the echo.
    num_echo_chars: u64,
    /// Number of characters of the text so far, including the echo's.
    num_chars: u64,
    /// Log-probabilities of tokens whose text is held back.
    pub held: CompletionLogprobs,
    /// Number of tokens generated so far.
    pub num_generated: u32,
    /// Number of prompt tokens found in the cache; set when the choice ends.
    num_cached: u32,
    /// Parser of its text; `None`: everything is content.
    pub parser: Option<ChoiceParser>,
    /// True if a chunk of this choice has been sent.
    pub started: bool,
    ended: bool,
}

/// The piece that one generated token adds to a choice.
#[derive(Debug)]
pub struct Piece {
    /// Beginning of the text; in the first piece only.
    pub echo: Option<Arc<Echo>>,
    pub prompt_logprobs: Vec<PromptLogprob>,
    pub token: GeneratedToken,
    /// Number of characters before this token, including the echo and text that is still held back.
    pub offset: u64,
    /// True if the token is shown and counted.
    pub shown: bool,
}

impl Piece {
    /// Text that this piece adds to the choice.
    pub fn text(self) -> String {
        let generated = if self.shown {
            self.token.text
        } else {
            String::new()
        };
        match self.echo {
            Some(echo) => [echo.text.as_str(), &generated].concat(),
            None => generated,
        }
    }

    pub fn finish_reason(&self) -> Option<OpenAiFinishReason> {
        let finish = self.token.finish.as_ref()?;
        if !self.shown {
            return Some(OpenAiFinishReason::Length);
        }
        Some(OpenAiFinishReason::from(&finish.reason))
    }

    pub fn stop_reason(&self) -> Option<StopReason> {
        let finish = self.token.finish.as_ref().filter(|_| self.shown)?;
        StopReason::of(&finish.reason)
    }

    /// Adds this piece's log-probabilities to a chat's.
    pub fn add_to_chat(&self, texts: TokenTexts<'_>, logprobs: &mut ChatLogprobs) {
        logprobs.push(texts, &self.token);
    }

    /// Adds this piece's log-probabilities to a completion's, including those of the echo.
    pub fn add_to_completion(&self, texts: TokenTexts<'_>, logprobs: &mut CompletionLogprobs) {
        if let Some(echo) = &self.echo {
            logprobs.push_prompt(texts, echo, &self.prompt_logprobs);
        }
        if self.shown {
            logprobs.push(texts, &self.token, self.offset);
        }
    }
}

impl<S: Events> RunningChoice<S> {
    /// A choice that reads `events`. `prompt`: index of the prompt that it continues. `echo_only`: show only the echo.
    pub fn new(
        index: u32,
        prompt: usize,
        events: S,
        echo: Option<Arc<Echo>>,
        echo_only: bool,
    ) -> Self {
        Self {
            index,
            prompt,
            events,
            echo,
            echo_only,
            prompt_logprobs: Vec::new(),
            prompt_ids: None,
            returned: None,
            num_echo_chars: 0,
            num_chars: 0,
            held: CompletionLogprobs::default(),
            num_generated: 0,
            num_cached: 0,
            parser: None,
            started: false,
            ended: false,
        }
    }

    /// Log-probabilities of the prompt's tokens, once the choice has begun; `None` when they are not reported.
    pub fn prompt_entries(&self, texts: TokenTexts<'_>) -> Option<PromptLogprobs> {
        let ids = self.prompt_ids.as_ref()?;
        Some(prompt_logprobs::entries(texts, ids, &self.prompt_logprobs))
    }

    /// Fields of a chunk for the tokens since the last one, if the request asks for them. `texts`: with
    /// log-probabilities.
    pub fn take_returned(&mut self, texts: Option<TokenTexts<'_>>) -> Option<ReturnedFields> {
        Some(self.returned.as_mut()?.take_fields(texts))
    }

    /// True if the choice is complete or failed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next piece; `None` after the last. Counts characters only when `count_chars`.
    pub fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
        count_chars: bool,
    ) -> Poll<Option<Result<Piece, GenerationError>>> {
        while !self.ended {
            match std::task::ready!(Pin::new(&mut self.events).poll_next(context)) {
                Some(Ok(Event::PromptLogprobs(logprobs))) => self.prompt_logprobs = logprobs,
                Some(Ok(Event::Token(token))) => {
                    return Poll::Ready(Some(Ok(self.piece(token, count_chars))));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(GenerationError::Shutdown)));
                }
            }
        }
        Poll::Ready(None)
    }

    fn piece(&mut self, token: GeneratedToken, count_chars: bool) -> Piece {
        if let Some(finish) = &token.finish {
            self.ended = true;
            self.num_cached = finish.num_cached_tokens;
        }
        self.num_generated += 1;
        if let Some(returned) = &mut self.returned
            && !self.echo_only
        {
            returned.push(&token);
        }
        let echo = self.echo.take();
        if count_chars && let Some(echo) = &echo {
            self.num_echo_chars = echo.text.chars().count() as u64;
            self.num_chars = self.num_echo_chars;
        }
        let offset = self.num_echo_chars + token.offset_chars;
        if count_chars && !self.echo_only {
            self.num_chars += token.text.chars().count() as u64;
        }
        Piece {
            echo,
            prompt_logprobs: match self.prompt_ids {
                // Reported apart from the text, too.
                Some(_) => self.prompt_logprobs.clone(),
                None => std::mem::take(&mut self.prompt_logprobs),
            },
            token,
            offset,
            shown: !self.echo_only,
        }
    }

    /// Number of characters of the text so far, when they are counted.
    pub fn num_chars(&self) -> u64 {
        self.num_chars
    }

    /// Number of generated tokens to report in the usage.
    pub fn num_counted(&self) -> u64 {
        if self.echo_only {
            0
        } else {
            u64::from(self.num_generated)
        }
    }

    /// Number of tokens of reasoning of all choices; `None` if they are not parsed.
    pub fn sum_reasoning(choices: &[Self]) -> Option<u64> {
        let parsers = choices.iter().map(|choice| choice.parser.as_ref());
        parsers
            .map(|parser| parser.map(|parser| parser.num_reasoning_tokens))
            .sum()
    }

    /// Number of tokens of all prompts that were in the cache before; known once all choices have ended. The other
    /// choices of a prompt find in the cache what the first one computed, so the smallest count is taken.
    pub fn sum_cached(choices: &[Self]) -> u64 {
        choices
            .chunk_by(|a, b| a.prompt == b.prompt)
            .filter_map(|of_prompt| of_prompt.iter().map(|choice| choice.num_cached).min())
            .map(u64::from)
            .sum()
    }

    /// Reads the choice to its end and passes every piece to `each`.
    pub async fn collect(
        &mut self,
        count_chars: bool,
        mut each: impl FnMut(Piece),
    ) -> Result<Finish, GenerationError> {
        loop {
            let piece = std::future::poll_fn(|context| self.poll_piece(context, count_chars)).await;
            match piece {
                Some(Ok(piece)) => {
                    let finish = piece.token.finish.clone();
                    each(piece);
                    if let Some(finish) = finish {
                        return Ok(finish);
                    }
                }
                Some(Err(error)) => return Err(error),
                None => return Err(GenerationError::Shutdown),
            }
        }
    }
}
