//! A streamed answer: the pieces of all choices as server-sent events, in the order of their arrival.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures::Stream;
use gridwork_engine::{Finish, Generation};
use serde::Serialize;
use tokenizers::Tokenizer;

use super::choice::{Events, Piece, RunningChoice};
use super::chunk::{AnswerKind, ChunkDetails, ChunkEncoder, DONE};
use super::response::{ChatLogprobs, Delta, OpenAiFinishReason, StopReason, Usage};
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::sse::{self, FRAME_BYTES};
use crate::tokenizing::token_text::TokenTexts;

/// Parts of a stream besides the text.
#[derive(Debug, Clone, Default)]
pub struct StreamContent {
    /// Tokenizer for the texts of tokens, when log-probabilities are requested.
    pub logprobs: Option<Arc<Tokenizer>>,
    /// Send a last chunk with the usage.
    pub include_usage: bool,
    /// Report the usage so far in every chunk.
    pub continuous_usage: bool,
}

/// End of an answer.
#[derive(Debug)]
pub enum StreamEnd<'a> {
    /// Complete. Holds the result of each choice, in the order in which they ended.
    Complete(&'a [Finish]),
    Failed(&'a ApiError),
    /// The client closed the connection.
    Dropped,
}

/// Called once, with how the answer ended.
pub type OnEnd = Box<dyn FnOnce(StreamEnd<'_>) + Send>;

/// Server-sent events of one answer.
pub struct AnswerStream<S = Generation> {
    kind: AnswerKind,
    encoder: ChunkEncoder,
    choices: Vec<RunningChoice<S>>,
    content: StreamContent,
    prompt_tokens: u64,
    finishes: Vec<Finish>,
    on_end: Option<OnEnd>,
    ended: bool,
    /// Index of the choice that the next frame begins with.
    next: usize,
}

impl<S: Events> AnswerStream<S> {
    pub fn new(
        kind: AnswerKind,
        encoder: ChunkEncoder,
        choices: Vec<RunningChoice<S>>,
        prompt_tokens: u64,
        content: StreamContent,
        on_end: OnEnd,
    ) -> Self {
        Self {
            kind,
            encoder,
            choices,
            content,
            prompt_tokens,
            finishes: Vec::new(),
            on_end: Some(on_end),
            ended: false,
            next: 0,
        }
    }

    /// Writes the pieces that are ready to `out`; `Pending` when none is.
    fn poll_events(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        let mut ready = true;
        // One piece of each choice in a round, so that choices interleave.
        while ready && !self.ended && out.len() < FRAME_BYTES {
            let first = std::mem::take(&mut self.next);
            // The choices before `first` have not been polled in this round.
            ready = first > 0;
            for position in first..self.choices.len() {
                // Echoes may be long, and there may be many choices.
                if out.len() >= FRAME_BYTES {
                    self.next = position;
                    break;
                }
                let count_chars = self.content.logprobs.is_some();
                let Some(choice) = self.choices.get_mut(position) else {
                    break;
                };
                match choice.poll_piece(context, count_chars) {
                    Poll::Ready(Some(Ok(piece))) => {
                        ready = true;
                        if let Err(error) = self.write(position, piece, out) {
                            self.fail(out, ApiError::new(ErrorKind::Internal, error.to_string()));
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.fail(out, ApiError::from(error));
                        return Poll::Ready(());
                    }
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            if self.choices.iter().all(RunningChoice::has_ended) {
                self.finish(out);
            }
        }
        if out.is_empty() && !self.ended {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    fn write(
        &mut self,
        position: usize,
        mut piece: Piece,
        out: &mut Vec<u8>,
    ) -> Result<(), serde_json::Error> {
        let usage = self.content.continuous_usage.then(|| self.usage());
        let Some(choice) = self.choices.get_mut(position) else {
            return Ok(());
        };
        let index = choice.index;
        let (finish_reason, stop_reason) = (piece.finish_reason(), piece.stop_reason());
        self.finishes.extend(piece.token.finish.take());
        if choice.parser.is_some() {
            let parts = (&self.encoder, self.content.logprobs.as_deref());
            let end = (finish_reason, stop_reason);
            return write_parsed(parts, choice, piece, end, usage, out);
        }
        let Some(tokenizer) = &self.content.logprobs else {
            let text = piece.text();
            if finish_reason.is_none() {
                // Tokens without text are shown with the next one that has some.
                if text.is_empty() {
                    return Ok(());
                }
                if choice.started && usage.is_none() && choice.returned.is_none() {
                    self.encoder.text(out, index, &text);
                    return Ok(());
                }
            }
            let details = ChunkDetails::<()> {
                first: !std::mem::replace(&mut choice.started, true),
                logprobs: None,
                finish_reason,
                stop_reason,
                usage,
                returned: choice.take_returned(None),
            };
            return self.encoder.detailed(out, index, &text, &details);
        };
        let texts = TokenTexts::new(tokenizer);
        match self.kind {
            AnswerKind::Chat => {
                let first = !std::mem::replace(&mut choice.started, true);
                let mut logprobs = ChatLogprobs::default();
                piece.add_to_chat(texts, &mut logprobs);
                let details = ChunkDetails {
                    returned: choice.take_returned(Some(texts)),
                    stop_reason,
                    ..details(first, &logprobs, finish_reason, usage)
                };
                self.encoder.detailed(out, index, &piece.text(), &details)
            }
            AnswerKind::Completion => {
                // Log-probabilities of text that is held back wait for their text.
                let mut logprobs = std::mem::take(&mut choice.held);
                piece.add_to_completion(texts, &mut logprobs);
                if finish_reason.is_some() {
                    logprobs.end_at(choice.num_chars());
                } else if piece.token.holds_text {
                    choice.held = logprobs.split_off(choice.num_chars());
                    if logprobs.tokens.is_empty() && piece.token.text.is_empty() {
                        return Ok(());
                    }
                }
                let first = !std::mem::replace(&mut choice.started, true);
                let details = ChunkDetails {
                    returned: choice.take_returned(Some(texts)),
                    stop_reason,
                    ..details(first, &logprobs, finish_reason, usage)
                };
                self.encoder.detailed(out, index, &piece.text(), &details)
            }
        }
    }

    fn usage(&self) -> Usage {
        let generated = self.choices.iter().map(RunningChoice::num_counted).sum();
        Usage::new(self.prompt_tokens, generated)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let usage = self
            .usage()
            .with_cached_tokens(RunningChoice::sum_cached(&self.choices))
            .with_reasoning_tokens(RunningChoice::sum_reasoning(&self.choices));
        if self.content.include_usage
            && let Err(error) = self.encoder.usage(out, usage)
        {
            return self.fail(out, ApiError::new(ErrorKind::Internal, error.to_string()));
        }
        out.extend_from_slice(DONE);
        self.ended = true;
        if let Some(on_end) = self.on_end.take() {
            on_end(StreamEnd::Complete(&self.finishes));
        }
    }

    /// Ends the answer with an error instead of `[DONE]`, and aborts the choices that still run.
    fn fail(&mut self, out: &mut Vec<u8>, error: ApiError) {
        // Cannot fail: a JSON value is written to memory.
        let _ = sse::json_event(out, &error.body(Dialect::OpenAi));
        self.choices.clear();
        self.ended = true;
        if let Some(on_end) = self.on_end.take() {
            on_end(StreamEnd::Failed(&error));
        }
    }
}

impl<S> Drop for AnswerStream<S> {
    fn drop(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end(StreamEnd::Dropped);
        }
    }
}

/// Writes the chunks of a parsed piece, one for each delta. The first has the log-probabilities, the last the reason.
fn write_parsed<S: Events>(
    (encoder, logprobs_of): (&ChunkEncoder, Option<&Tokenizer>),
    choice: &mut RunningChoice<S>,
    piece: Piece,
    (finish_reason, mut stop_reason): (Option<OpenAiFinishReason>, Option<StopReason>),
    usage: Option<Usage>,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let mut logprobs = logprobs_of.map(|tokenizer| {
        let mut logprobs = ChatLogprobs::default();
        piece.add_to_chat(TokenTexts::new(tokenizer), &mut logprobs);
        logprobs
    });
    let Some(parser) = &mut choice.parser else {
        return Ok(());
    };
    let mut deltas = parser.push(&piece.text(), finish_reason.is_some());
    let finish_reason = finish_reason.map(|reason| parser.finish_reason(reason));
    if deltas.is_empty() && (logprobs.is_some() || finish_reason.is_some()) {
        deltas.push(Delta::default());
    }
    let num_deltas = deltas.len();
    let texts = logprobs_of.map(TokenTexts::new);
    for (number, delta) in deltas.into_iter().enumerate() {
        let is_last = number + 1 == num_deltas;
        let logprobs = logprobs.take();
        let details = ChunkDetails {
            first: !std::mem::replace(&mut choice.started, true),
            logprobs: logprobs.as_ref(),
            finish_reason: finish_reason.filter(|_| is_last),
            stop_reason: stop_reason.take_if(|_| is_last),
            usage,
            returned: match number {
                0 => choice.take_returned(texts),
                _ => None,
            },
        };
        encoder.delta(out, choice.index, delta, &details)?;
    }
    Ok(())
}

fn details<L: Serialize>(
    first: bool,
    logprobs: &L,
    finish_reason: Option<OpenAiFinishReason>,
    usage: Option<Usage>,
) -> ChunkDetails<'_, L> {
    ChunkDetails {
        first,
        logprobs: Some(logprobs),
        finish_reason,
        stop_reason: None,
        usage,
        returned: None,
    }
}

impl<S: Events> Stream for AnswerStream<S> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        std::task::ready!(self.poll_events(context, &mut out));
        Poll::Ready(Some(Bytes::from(out)))
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
