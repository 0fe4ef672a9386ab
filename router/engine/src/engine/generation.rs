//! The events of one admitted request, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use super::step_loop::Command;
use crate::backlog::Backlog;
use crate::error::GenerationError;
use crate::permits::Permit;
use crate::request::Event;
use crate::sequence::SequenceKey;

/// Stream of one request's events. Dropping it aborts the request and frees its blocks.
pub struct Generation {
    pub(super) key: SequenceKey,
    pub(super) events: mpsc::UnboundedReceiver<Result<Event, GenerationError>>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) ended: bool,
    pub(super) backlog: Backlog,
    /// Returned at once when the client disconnects.
    pub(super) _permit: Permit,
}

impl Stream for Generation {
    type Item = Result<Event, GenerationError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = match self.events.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(event) => event.unwrap_or(Err(GenerationError::Shutdown)),
        };
        if let Ok(event) = &event {
            self.backlog.remove(event);
        }
        self.ended = match &event {
            Ok(Event::Token(token)) => token.finish.is_some(),
            Ok(Event::PromptLogprobs(_)) => false,
            Err(_) => true,
        };
        Poll::Ready(Some(event))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Abort(self.key));
        }
    }
}
