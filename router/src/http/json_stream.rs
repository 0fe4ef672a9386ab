//! Large JSON answers, written while they are sent. For a client that does not read, the server holds only the data
//! that an answer is made from, not its text.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body::Frame;

use crate::connections::intake::Ticket;
use crate::error::{ApiError, ErrorKind};
use crate::http::sse::FRAME_BYTES;

/// Size up to which an answer is sent whole, with its length.
const WHOLE_BYTES: usize = 64 * 1024;

/// A response whose JSON `write` appends piece by piece, until it returns false. While the response is being sent,
/// `held_bytes` count against the memory budget of bodies (see [`crate::connections::intake`]).
pub(crate) fn response<W>(mut write: W, held_bytes: usize) -> Result<Response, ApiError>
where
    W: FnMut(&mut Vec<u8>) -> bool + Send + Unpin + 'static,
{
    let mut first = Vec::new();
    let is_whole = loop {
        if !write(&mut first) {
            break true;
        }
        if first.len() >= WHOLE_BYTES {
            break false;
        }
    };
    let body = if is_whole {
        Body::from(first)
    } else {
        let ticket = Ticket::current();
        if ticket
            .as_ref()
            .is_some_and(|ticket| !ticket.take(held_bytes))
        {
            return Err(ApiError {
                retry_after_s: Some(1),
                ..ApiError::new(
                    ErrorKind::Overloaded,
                    "Model is overloaded: too many large answers have not been read",
                )
            });
        }
        Body::new(JsonBody {
            first: Some(first.into()),
            write: Some(write),
            _ticket: ticket,
        })
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

struct JsonBody<W> {
    first: Option<Bytes>,
    /// `None` after the last piece.
    write: Option<W>,
    _ticket: Option<Ticket>,
}

impl<W: FnMut(&mut Vec<u8>) -> bool + Unpin> http_body::Body for JsonBody<W> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(write) = &mut self.write else {
            return Poll::Ready(None);
        };
        let mut frame = Vec::with_capacity(FRAME_BYTES * 2);
        while frame.len() < FRAME_BYTES {
            if !write(&mut frame) {
                self.write = None;
                break;
            }
        }
        Poll::Ready((!frame.is_empty()).then(|| Ok(Frame::data(frame.into()))))
    }
}

/// Appends `value` as JSON.
pub(crate) fn push(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    let before = out.len();
    // Only maps with keys that are not text fail to be written, and no answer has any.
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!("a part of an answer cannot be written: {error}");
        out.truncate(before);
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::connections::intake::Intake;

    /// Writer of an array of `count` numbers.
    fn numbers(count: u32) -> impl FnMut(&mut Vec<u8>) -> bool + Send + Unpin + 'static {
        let mut next = 0;
        move |out| {
            out.extend_from_slice(if next == 0 { b"[" } else { b"," });
            push(out, &next);
            next += 1;
            if next == count {
                out.extend_from_slice(b"]");
            }
            next < count
        }
    }

    #[tokio::test]
    async fn answers_of_any_size_are_whole_json() {
        for count in [1, 100, 100_000] {
            let response = response(numbers(count), 0).expect("room");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
            let body = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("a body");
            let read: Vec<u32> = serde_json::from_slice(&body).expect("JSON");
            assert!(read.into_iter().eq(0..count));
        }
    }

    #[tokio::test]
    async fn the_data_of_a_large_answer_counts_until_it_has_been_sent() {
        let intake = Intake::new(1000);
        let answer = |bytes| {
            let ticket = intake.ticket();
            ticket.while_handling(async move { response(numbers(100_000), bytes) })
        };
        let unread = answer(64 << 20).await.expect("room");
        let error = answer(1 << 20).await.expect_err("no room");
        assert_eq!(error.kind, ErrorKind::Overloaded);
        drop(unread);
        assert!(answer(1 << 20).await.is_ok());
    }
}
