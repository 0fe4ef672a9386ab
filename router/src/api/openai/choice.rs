//! One text in the making: the events of a generation, read the way this API shows them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use gridwork_engine::{Event, Finish, GeneratedToken, Generation, GenerationError, PromptLogprob};

use super::response::{ChatLogprobs, CompletionLogprobs, OpenAiFinishReason};
use crate::tokenizing::token_text::TokenTexts;

/// What a completion with `echo` begins with. The choices of a prompt share it.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    /// The prompt's text.
    pub text: String,
    pub ids: Vec<u32>,
    /// Where each of the tokens begins in the text, in characters; none when no log-probabilities are shown.
    pub offsets: Vec<u64>,
}

/// Events of a choice; the engine's, or a test's.
pub trait Events: Stream<Item = Result<Event, GenerationError>> + Unpin + Send + 'static {}
impl<S: Stream<Item = Result<Event, GenerationError>> + Unpin + Send + 'static> Events for S {}

/// One text of an answer.
#[derive(Debug)]
pub struct RunningChoice<S = Generation> {
    pub index: u32,
    /// Which prompt it continues.
    prompt: usize,
    events: S,
    /// Taken when the text begins.
    echo: Option<Arc<Echo>>,
    /// Only the prompt is wanted: what is generated is not shown.
    echo_only: bool,
    prompt_logprobs: Vec<PromptLogprob>,
    /// Characters of the echo.
    num_echo_chars: u64,
    /// Characters of the text so far, the echo's among them.
    num_chars: u64,
    /// Log-probabilities of tokens whose text is held back.
    pub held: CompletionLogprobs,
    /// Generated tokens so far.
    pub num_generated: u32,
    /// Tokens of the prompt that were in the cache; known at the end.
    num_cached: u32,
    /// Whether a chunk of it has been sent.
    pub started: bool,
    ended: bool,
}

/// What has become of a choice with one token.
#[derive(Debug)]
pub struct Piece {
    /// What the text begins with; in the first piece only.
    pub echo: Option<Arc<Echo>>,
    pub prompt_logprobs: Vec<PromptLogprob>,
    pub token: GeneratedToken,
    /// Characters of the text before this token, as if none of it were held back; the echo's among them.
    pub offset: u64,
    /// Whether the token is shown and counted.
    pub shown: bool,
}

impl Piece {
    /// The text it adds.
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

    /// Adds this piece's log-probabilities to a chat's.
    pub fn add_to_chat(&self, texts: TokenTexts<'_>, logprobs: &mut ChatLogprobs) {
        logprobs.push(texts, &self.token);
    }

    /// Adds this piece's log-probabilities to a completion's, the echo's included.
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
    /// `prompt`: which one it continues. `echo_only`: show nothing of what is generated.
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
            num_echo_chars: 0,
            num_chars: 0,
            held: CompletionLogprobs::default(),
            num_generated: 0,
            num_cached: 0,
            started: false,
            ended: false,
        }
    }

    /// Whether nothing more comes.
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
            prompt_logprobs: std::mem::take(&mut self.prompt_logprobs),
            token,
            offset,
            shown: !self.echo_only,
        }
    }

    /// Characters of the text so far, when they are counted.
    pub fn num_chars(&self) -> u64 {
        self.num_chars
    }

    /// Generated tokens that count for the client.
    pub fn num_counted(&self) -> u64 {
        if self.echo_only {
            0
        } else {
            u64::from(self.num_generated)
        }
    }

    /// Tokens of all prompts that were in the cache before; known once all choices have ended. What one choice computes
    /// of its prompt the others of this prompt find.
    pub fn sum_cached(choices: &[Self]) -> u64 {
        choices
            .chunk_by(|a, b| a.prompt == b.prompt)
            .filter_map(|of_prompt| of_prompt.iter().map(|choice| choice.num_cached).min())
            .map(u64::from)
            .sum()
    }

    /// Reads to the end, giving every piece to `each`.
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
