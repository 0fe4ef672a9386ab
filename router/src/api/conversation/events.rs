//! A streamed answer in the form of another API than OpenAI's chunks: events for each change of its blocks.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures::Stream;
use gridwork_engine::Generation;
use serde::Serialize;

use super::answer::{Answer, AnswerReader};
use super::blocks::{Block, BlockSink};
use crate::api::openai::choice::{Events, RunningChoice};
use crate::api::openai::response::TokenLogprob;
use crate::api::openai::stream::{OnEnd, StreamEnd};
use crate::error::ApiError;
use crate::http::sse::{self, FRAME_BYTES};

/// Writes the events of an API.
pub trait EventWriter: Send + Unpin + 'static {
    /// Events before the answer.
    fn start(&mut self, out: &mut Vec<u8>, prompt_tokens: u64);
    fn begin(&mut self, out: &mut Vec<u8>, at: usize, block: &Block);
    fn delta(
        &mut self,
        out: &mut Vec<u8>,
        at: usize,
        block: &Block,
        text: &str,
        logprobs: &[TokenLogprob],
    );
    fn end(&mut self, out: &mut Vec<u8>, at: usize, block: &Block);
    /// Events after the complete answer.
    fn finish(&mut self, out: &mut Vec<u8>, answer: Answer);
    /// Events after an answer that has failed.
    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError);
}

/// Appends an event with an `event:` line. `value` has the same name in its field `type`.
pub fn named_event(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    let before = out.len();
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    if let Err(error) = sse::json_event(out, value) {
        // Only maps with keys that are not text fail to be written, and no event has any.
        tracing::error!("the event {name} cannot be written: {error}");
        out.truncate(before);
    }
}

/// Sends the changes of blocks to a writer.
struct Written<'a, W> {
    writer: &'a mut W,
    out: &'a mut Vec<u8>,
}

impl<W: EventWriter> BlockSink for Written<'_, W> {
    fn begin(&mut self, at: usize, block: &Block) {
        self.writer.begin(self.out, at, block);
    }

    fn delta(&mut self, at: usize, block: &Block, text: &str, logprobs: &[TokenLogprob]) {
        self.writer.delta(self.out, at, block, text, logprobs);
    }

    fn end(&mut self, at: usize, block: &Block) {
        self.writer.end(self.out, at, block);
    }
}

/// Server-sent events of one answer.
pub struct AnswerEvents<W, S = Generation> {
    writer: W,
    /// `None` after the end. Dropping it aborts the generation.
    running: Option<(RunningChoice<S>, AnswerReader)>,
    on_end: Option<OnEnd>,
    started: bool,
}

impl<W: EventWriter, S: Events> AnswerEvents<W, S> {
    pub fn new(writer: W, choice: RunningChoice<S>, reader: AnswerReader, on_end: OnEnd) -> Self {
        Self {
            writer,
            running: Some((choice, reader)),
            on_end: Some(on_end),
            started: false,
        }
    }

    /// Writes the events that are ready to `out`.
    fn write(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) {
        while out.len() < FRAME_BYTES {
            let Some((choice, reader)) = &mut self.running else {
                return;
            };
            if !std::mem::replace(&mut self.started, true) {
                self.writer.start(out, reader.tokens().prompt);
            }
            let mut piece = match choice.poll_piece(context, false) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(piece))) => piece,
                Poll::Ready(Some(Err(error))) => return self.fail(out, &ApiError::from(error)),
                Poll::Ready(None) => {
                    self.running = None;
                    return;
                }
            };
            let writer = &mut self.writer;
            let mut sink = Written {
                writer,
                out: &mut *out,
            };
            reader.add(&piece.token, &mut sink);
            let Some(finish) = piece.token.finish.take() else {
                continue;
            };
            if let Some((_, reader)) = self.running.take() {
                let answer = reader.finish(&finish, &mut sink);
                self.writer.finish(out, answer);
            }
            if let Some(on_end) = self.on_end.take() {
                on_end(StreamEnd::Complete(&[finish]));
            }
        }
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.running = None;
        self.writer.fail(out, error);
        if let Some(on_end) = self.on_end.take() {
            on_end(StreamEnd::Failed(error));
        }
    }
}

impl<W, S> Drop for AnswerEvents<W, S> {
    fn drop(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end(StreamEnd::Dropped);
        }
    }
}

impl<W: EventWriter, S: Events> Stream for AnswerEvents<W, S> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = Vec::new();
        self.write(context, &mut out);
        if !out.is_empty() {
            return Poll::Ready(Some(Bytes::from(out)));
        }
        match self.running {
            Some(_) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}
