//! Server-sent events: the response of a stream, and JSON strings for events that are written by hand.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::Stream;
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Maximum size of a frame before further events go into the next one.
pub const FRAME_BYTES: usize = 16 * 1024;

/// Silence after which a comment is sent.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// A comment, which clients skip.
pub const KEEP_ALIVE: &[u8] = b":\n\n";

/// A response whose body is `frames`, each with one or more whole events. While there are none, comments keep the
/// connection alive.
pub fn response<S>(frames: S) -> Response
where
    S: Stream<Item = Bytes> + Send + Unpin + 'static,
{
    kept_alive_by(KEEP_ALIVE, frames)
}

/// The same with `event` in place of comments.
pub fn kept_alive_by<S>(event: &'static [u8], frames: S) -> Response
where
    S: Stream<Item = Bytes> + Send + Unpin + 'static,
{
    let first = Instant::now() + KEEP_ALIVE_INTERVAL;
    let mut keep_alive = tokio::time::interval_at(first, KEEP_ALIVE_INTERVAL);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut response = Response::new(Body::new(EventBody {
        frames,
        event,
        keep_alive,
        sent: false,
    }));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct EventBody<S> {
    frames: S,
    /// Sent after a silence.
    event: &'static [u8],
    keep_alive: Interval,
    /// True if a frame has been sent since the last tick.
    sent: bool,
}

impl<S: Stream<Item = Bytes> + Unpin> http_body::Body for EventBody<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.frames).poll_next(context) {
            self.sent = true;
            return Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))));
        }
        while self.keep_alive.poll_tick(context).is_ready() {
            if !std::mem::replace(&mut self.sent, false) {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.event)))));
            }
        }
        Poll::Pending
    }
}

/// Appends an event whose data is `value` as JSON.
pub fn json_event(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), serde_json::Error> {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// Appends `text` as a JSON string, quotes included.
pub fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..i]);
        plain_from = i + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use futures::stream;

    #[test]
    fn json_strings_parse_back() {
        for text in [
            "",
            "plain",
            "\"quoted\" \\ back",
            "line\nfeed\r\t",
            "\u{0}\u{1f}\u{7f}",
            "é😀漢",
            "\u{2028}",
        ] {
            let mut out = Vec::new();
            json_string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), text);
        }
    }

    #[tokio::test]
    async fn frames_are_sent_unchanged_with_the_headers_of_a_stream() {
        let response = response(stream::iter([
            Bytes::from("data: 1\n\n"),
            Bytes::from("data: 2\n\n"),
        ]));
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream"
        );
        let body = to_bytes(response.into_body(), 1000).await.expect("a body");
        assert_eq!(body, "data: 1\n\ndata: 2\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_a_comment() {
        let body = response(stream::pending::<Bytes>()).into_body();
        let mut body = http_body_util::BodyExt::into_data_stream(body);
        let comment = futures::StreamExt::next(&mut body)
            .await
            .expect("a frame")
            .expect("no error");
        assert_eq!(comment, KEEP_ALIVE);
    }
}
