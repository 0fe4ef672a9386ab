//! Facts about each request while it is handled: its ids, which every log line of its task carries; one log line when
//! it is finished (`--log-requests`), with counts, times and the reason of the end; and the end of its span. Neither has any
//! text or token.
//!
//! Every part of the router that learns such a fact passes it to [`note`]. The line is written when the request and its
//! answer are dropped, so that each request has exactly one, whatever ends it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use tracing::Span;

use crate::observability::telemetry;

tokio::task_local! {
    static CURRENT: Shared;
}

type Shared = Arc<Mutex<Record>>;

/// Facts about one request. Those that are not known when it ends are left out of its line.
#[derive(Debug)]
pub struct Record {
    request_id: Arc<str>,
    route: String,
    /// True if a line is written when it is finished.
    is_logged: bool,
    /// Status of the answer.
    status: Option<StatusCode>,
    /// Span of the request.
    pub span: Span,
    started: Instant,
    /// Trace that the request belongs to, if it is recorded.
    pub trace_id: Option<String>,
    /// Name of the API key, where the file of keys has one.
    pub key_name: Option<String>,
    /// Tokens of all prompts or inputs.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that were found in the prefix cache, summed over all sequences.
    pub cached_tokens: Option<u64>,
    pub generated_tokens: Option<u64>,
    /// Time in the queue of the sequence that waited longest.
    pub queue: Option<Duration>,
    /// Time from admission to the first token of any sequence.
    pub first_token: Option<Duration>,
    /// Reason why generation ended; `complete` for answers that are not generated.
    pub finish: Option<&'static str>,
    /// Kind of the error. It takes precedence over `finish`, because a part of a failed answer may have been generated.
    pub failure: Option<&'static str>,
    /// True if the whole answer was taken for sending.
    is_answered: bool,
}

impl Record {
    fn reason(&self) -> &'static str {
        let complete = self.is_answered.then_some("complete");
        let reason = self.failure.or(self.finish).or(complete);
        reason.unwrap_or("client_disconnected")
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        telemetry::end(&self.span, self.status, self.reason(), self.failure);
        if !self.is_logged {
            return;
        }
        tracing::info!(
            request_id = &*self.request_id,
            route = self.route,
            trace_id = self.trace_id,
            api_key = self.key_name,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.cached_tokens,
            generated_tokens = self.generated_tokens,
            queue_ms = self.queue.map(milliseconds),
            first_token_ms = self.first_token.map(milliseconds),
            total_ms = milliseconds(self.started.elapsed()),
            reason = self.reason(),
            "request finished"
        );
    }
}

/// Milliseconds, to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Adds facts to the record of the current task's request, if requests are logged.
pub fn note(add: impl FnOnce(&mut Record)) {
    let _ = CURRENT.try_with(|record| change(record, add));
}

fn change(record: &Shared, add: impl FnOnce(&mut Record)) {
    add(&mut record.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Id of the current task's request, and of its trace.
pub fn current_ids() -> Option<(Arc<str>, Option<String>)> {
    CURRENT
        .try_with(|record| {
            // The thread holds the lock when a line is written while a fact is noted.
            let record = record.try_lock().ok()?;
            Some((record.request_id.clone(), record.trace_id.clone()))
        })
        .ok()?
}

/// Keeps a record of a request until its answer has been sent or is dropped, and logs it then if `is_logged`. `answer`
/// handles the request; in it and in its body, [`note`] reaches the request's record. `route`: path of the route, without
/// anything that the client chose.
pub async fn recorded(
    request_id: &str,
    route: String,
    is_logged: bool,
    answer: impl Future<Output = Response>,
) -> Response {
    let record = Arc::new(Mutex::new(Record {
        request_id: request_id.into(),
        route,
        is_logged,
        status: None,
        span: Span::none(),
        started: Instant::now(),
        trace_id: None,
        key_name: None,
        prompt_tokens: None,
        cached_tokens: None,
        generated_tokens: None,
        queue: None,
        first_token: None,
        finish: None,
        failure: None,
        is_answered: false,
    }));
    let response = CURRENT.scope(record.clone(), answer).await;
    change(&record, |record| record.status = Some(response.status()));
    response.map(|body| {
        let mut body = LoggedBody { body, record };
        body.note_end();
        Body::new(body)
    })
}

/// Body of an answer whose request is logged.
struct LoggedBody {
    body: Body,
    record: Shared,
}

impl LoggedBody {
    fn note_end(&mut self) {
        if self.body.is_end_stream() {
            change(&self.record, |record| record.is_answered = true);
        }
    }
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let record = self.record.clone();
        let poll = || Pin::new(&mut self.body).poll_frame(context);
        let frame = ready!(CURRENT.sync_scope(record, poll));
        match &frame {
            None => change(&self.record, |record| record.is_answered = true),
            Some(_) => self.note_end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    /// Drops the body where [`note`] reaches the record, for the facts that it knows only now.
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        CURRENT.sync_scope(self.record.clone(), || drop(body));
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use futures::{StreamExt, stream};
    use gridwork_settings::LogLevel;
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::observability::logs::tests::logged as lines_of;

    /// The fields of the one line of a request that `answer` handles. Up to `num_frames` of its body are read.
    fn fields(answer: impl Future<Output = Response>, num_frames: usize) -> Value {
        let mut lines = lines_of(LogLevel::Info, || {
            futures::executor::block_on(async {
                let request = recorded("id-1", "/generate".to_owned(), true, answer);
                // A client that leaves drops a request which is not answered yet.
                let Some(response) = futures::FutureExt::now_or_never(request) else {
                    return;
                };
                let mut body = response.into_body();
                for _ in 0..num_frames {
                    body.frame().await;
                }
            });
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["message"], "request finished");
        lines[0]["fields"].take()
    }

    fn streamed() -> Response {
        let frames = stream::iter(["a", "b"]).map(|text| {
            note(|record| record.generated_tokens = Some(2));
            Ok::<_, std::convert::Infallible>(text)
        });
        Body::from_stream(frames).into_response()
    }

    #[test]
    fn a_request_has_one_line_with_what_is_known_of_it() {
        let answer = async {
            note(|record| {
                record.prompt_tokens = Some(5);
                record.queue = Some(Duration::from_micros(1250));
                record.finish = Some("length");
            });
            "text".into_response()
        };
        let fields = fields(answer, 2);
        assert_eq!(fields["request_id"], "id-1");
        assert_eq!(fields["route"], "/generate");
        assert_eq!(fields["prompt_tokens"], 5);
        assert_eq!(fields["queue_ms"], 1.25);
        assert_eq!(fields["reason"], "length");
        assert!(fields["total_ms"].is_number());
        assert!(fields.get("first_token_ms").is_none());
    }

    #[test]
    fn facts_that_are_noted_while_a_body_is_sent_are_in_the_line() {
        let fields = fields(async { streamed() }, 3);
        assert_eq!(fields["generated_tokens"], 2);
        assert_eq!(fields["reason"], "complete");
    }

    #[test]
    fn a_client_that_leaves_is_the_reason_before_and_while_the_answer_is_sent() {
        assert_eq!(
            fields(std::future::pending(), 0)["reason"],
            "client_disconnected"
        );
        assert_eq!(
            fields(async { streamed() }, 1)["reason"],
            "client_disconnected"
        );
    }

    #[test]
    fn an_error_is_the_reason_even_if_a_part_was_generated() {
        let answer = async {
            note(|record| record.failure = Some("generation"));
            note(|record| record.finish = Some("length"));
            "error".into_response()
        };
        assert_eq!(fields(answer, 2)["reason"], "generation");
    }

    #[test]
    fn nothing_is_noted_outside_of_a_logged_request() {
        let lines = lines_of(LogLevel::Info, || {
            note(|record| record.finish = Some("length"));
        });
        assert!(lines.is_empty());
    }

    #[test]
    fn every_line_of_a_request_carries_its_ids() {
        let lines = lines_of(LogLevel::Info, || {
            let answer = async {
                note(|record| record.trace_id = Some("t-1".to_owned()));
                tracing::warn!(target: "gridwork_router", "odd");
                "text".into_response()
            };
            let request = recorded("id-1", "/generate".to_owned(), false, answer);
            drop(futures::executor::block_on(request));
            tracing::warn!(target: "gridwork_router", "elsewhere");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0]["fields"]["request_id"], "id-1");
        assert_eq!(lines[0]["fields"]["trace_id"], "t-1");
        assert!(lines[1].get("fields").is_none());
    }
}
