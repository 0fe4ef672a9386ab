//! Bodies of requests and answers, with their time limits.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::connection::{Answering, Connection, Receiving};

/// Number of received bytes that extend a body's time limit by a second.
const SLOWEST_BYTES_PER_S: u64 = 8 * 1024;

/// Errors of receiving a body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(
        "the body came too slowly: {received_bytes} bytes in {seconds} s (--client-read-timeout)"
    )]
    TooSlow { received_bytes: u64, seconds: u64 },
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// A request's body. It must arrive within the read timeout plus a second for each 8 KiB.
pub(super) struct RequestBody {
    /// `None` once the body was handed to the answer.
    body: Option<Incoming>,
    receiving: Option<Receiving>,
    received: Received,
    read_timeout: Duration,
    began: Instant,
    received_bytes: u64,
    /// Timer, made when a byte is awaited.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// True once a body has ended.
#[derive(Debug, Clone)]
pub(super) struct Received(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_whole: AtomicBool,
    /// Rest of a body that a handler has not read. HTTP/2 resets a stream whose request is dropped, and its answer.
    rest: Mutex<Option<Incoming>>,
}

impl Received {
    pub fn is_whole(&self) -> bool {
        self.0.is_whole.load(Ordering::Relaxed)
    }
}

impl RequestBody {
    pub fn new(body: Incoming, connection: Arc<Connection>, read_timeout: Duration) -> Self {
        let is_empty = http_body::Body::is_end_stream(&body);
        RequestBody {
            body: Some(body),
            receiving: (!is_empty).then(|| connection.receive()),
            received: Received(Arc::new(State {
                is_whole: AtomicBool::new(is_empty),
                ..State::default()
            })),
            read_timeout,
            began: Instant::now(),
            received_bytes: 0,
            deadline: None,
        }
    }

    pub fn received(&self) -> Received {
        self.received.clone()
    }

    fn ended(&mut self) {
        self.received.0.is_whole.store(true, Ordering::Relaxed);
        self.receiving = None;
    }

    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<BodyError> {
        let allowed =
            self.read_timeout + Duration::from_secs(self.received_bytes / SLOWEST_BYTES_PER_S);
        let until = self.began + allowed;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if deadline.deadline() != until {
            deadline.as_mut().reset(until);
        }
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(BodyError::TooSlow {
            received_bytes: self.received_bytes,
            seconds: allowed.as_secs(),
        })
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut *body).poll_frame(context) {
            Poll::Pending => self.poll_deadline(context).map(|error| Some(Err(error))),
            Poll::Ready(None) => {
                self.ended();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.receiving = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.received_bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                if self.is_end_stream() {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let body = self.body.as_ref();
        body.is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.as_ref();
        body.map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(receiving) = &self.receiving
            && !self.received.is_whole()
        {
            receiving.connection().leave_body();
        }
        if !self.received.is_whole() {
            let rest = &self.received.0.rest;
            *rest.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}

/// An answer's body. Its connection counts as in use until the body was handed over.
pub(super) struct AnswerBody {
    body: Body,
    _answering: Answering,
    /// Unread rest of the request's body.
    _received: Option<Received>,
}

impl AnswerBody {
    pub fn new(body: Body, answering: Answering, received: Option<Received>) -> Self {
        AnswerBody {
            _received: received,
            body,
            _answering: answering,
        }
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
