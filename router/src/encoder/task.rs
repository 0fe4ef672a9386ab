//! Requests for a task that the model is not served for: refused at once, with what is served instead.

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use gridwork_proto::v1::Task;

use crate::api::tei;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::state::AppState;

/// Refusal of a request to `path`, which another task than `served` is for.
pub fn wrong_task(served: Task, path: &str) -> ApiError {
    let (task, routes) = match served {
        Task::Embed => ("embed", "POST /v1/embeddings or /embed"),
        Task::Classify => ("classify", "POST /predict"),
        Task::Rerank => ("rerank", "POST /rerank or /predict"),
        Task::FillMask => ("fill-mask", "POST /predict"),
        Task::Generate | Task::Unspecified => {
            ("generate", "POST /v1/chat/completions or /generate")
        }
    };
    ApiError::new(
        ErrorKind::WrongTask,
        format!("{path} is not for this model, which is served with --task {task}; use {routes}"),
    )
}

/// Keeps what generates from an encoder; `/tokenize`, `/` and `/invocations` are answered as encoders do.
pub async fn require_generator(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let Some(info) = state.encoder().loaded() else {
        return next.run(request).await;
    };
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let path = request.uri().path();
    if path == "/tokenize" {
        return tei::tokenize.call(request, state).await;
    }
    if path == "/" || path == "/invocations" {
        return tei::by_task(state, info.task(), request).await;
    }
    wrong_task(info.task(), path).into_response(Dialect::of(path))
}

/// Keeps what encodes from a generator.
pub async fn require_encoder(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if state.engine().loaded().is_none() || request.method() != Method::POST {
        return next.run(request).await;
    }
    let path = request.uri().path();
    wrong_task(Task::Generate, path).into_response(Dialect::of(path))
}
