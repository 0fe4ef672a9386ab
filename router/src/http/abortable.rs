//! Answers that end when their request is aborted by its id.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use futures::future::Abortable;
use futures::stream::{Abortable as AbortableStream, Pending};
use http_body::Frame;

use crate::api_keys::current_tenant_id;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::sse;
use crate::running_requests::RunningRequest;
use crate::state::AppState;

/// Header with the id of a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Tells the dialect of a path.
pub type DialectOf = fn(&str) -> Dialect;

/// Runs a request so that it can be aborted by its id.
pub async fn run(
    State((state, dialect_of)): State<(AppState, DialectOf)>,
    request: Request,
    next: Next,
) -> Response {
    let id = request.headers().get(REQUEST_ID);
    let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    let (Some(id), &Method::POST) = (id, request.method()) else {
        return next.run(request).await;
    };
    let dialect = dialect_of(request.uri().path());
    let (running, registration) = state.running_requests().begin(current_tenant_id(), &id);
    let handling = running.clone().scope(next.run(request));
    let Ok(response) = Abortable::new(handling, registration).await else {
        return aborted().into_response();
    };
    if !is_stream(response.headers()) {
        return response;
    }
    response.map(|body| {
        Body::new(AbortableBody {
            aborted: AbortableStream::new(futures::stream::pending(), running.part()),
            inner: body,
            dialect,
            ended: false,
            _running: running,
        })
    })
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn aborted() -> ApiError {
    ApiError::new(ErrorKind::Aborted, "the request was aborted by its id")
}

/// Body of a stream. When the request is aborted, an event says so, and the stream ends.
struct AbortableBody {
    inner: Body,
    /// Ends when the request is aborted.
    aborted: AbortableStream<Pending<()>>,
    dialect: Dialect,
    ended: bool,
    _running: Arc<RunningRequest>,
}

impl http_body::Body for AbortableBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if Pin::new(&mut self.aborted).poll_next(context).is_ready() {
            self.ended = true;
            // Dropping the answer frees what it holds in the engine.
            self.inner = Body::empty();
            let error = aborted();
            error.count();
            let mut event = Vec::new();
            if self.dialect == Dialect::Anthropic {
                event.extend_from_slice(b"event: error\n");
            }
            // Cannot fail: a JSON value is written to memory.
            let _ = sse::json_event(&mut event, &error.body(self.dialect));
            return Poll::Ready(Some(Ok(Frame::data(event.into()))));
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }
}
