//! `/` and `/invocations` of an encoder, and `/rerank`: routes whose bodies tell which other route they are for.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::Uri;
use axum::response::Response;
use gridwork_proto::v1::Task;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{embed, predict, rerank};
use crate::api::openai;
use crate::error::Dialect;
use crate::http::extract;
use crate::state::AppState;

/// Answers a request to `/` or `/invocations` as the route does that its body is for.
pub async fn by_task(state: AppState, task: Task, request: Request) -> Response {
    pass_on(state, request, |body| target(task, body)).await
}

/// `/rerank`, where text-embeddings-inference takes `texts` and vLLM takes `documents`, each in a form of its own.
pub async fn rerank_of_either(State(state): State<AppState>, request: Request) -> Response {
    let of_documents = |body: &[u8]| match target(Task::Rerank, body) {
        Target::OpenAiRerank => Target::OpenAiRerank,
        _ => Target::Rerank,
    };
    pass_on(state, request, of_documents).await
}

/// Has a request answered by the route that `target` tells of its body.
async fn pass_on(
    state: AppState,
    request: Request,
    target: impl FnOnce(&[u8]) -> Target,
) -> Response {
    let (parts, body) = request.into_parts();
    let limit_bytes = state.settings().http.payload_limit;
    let whole = Request::from_parts(parts.clone(), body);
    let bytes = match extract::read(whole, limit_bytes).await {
        Ok(bytes) => bytes,
        Err(error) => return error.into_response(Dialect::Tei),
    };
    let target = target(&bytes);
    let mut request = Request::from_parts(parts, Body::from(bytes));
    // The path decides how a refusal of the body looks.
    *request.uri_mut() = Uri::from_static(target.path());
    match target {
        Target::Embeddings => openai::embeddings.call(request, state).await,
        Target::OpenAiRerank => openai::rerank.call(request, state).await,
        Target::Embed => embed.call(request, state).await,
        Target::Predict => predict.call(request, state).await,
        Target::Rerank => rerank.call(request, state).await,
    }
}

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Embeddings,
    OpenAiRerank,
    Embed,
    Predict,
    Rerank,
}

impl Target {
    fn path(self) -> &'static str {
        match self {
            Target::Embeddings => "/v1/embeddings",
            Target::OpenAiRerank => "/v1/rerank",
            Target::Embed => "/embed",
            Target::Predict => "/predict",
            Target::Rerank => "/rerank",
        }
    }
}

/// Tells by the task, and by the field that only one of its routes has.
fn target(task: Task, body: &[u8]) -> Target {
    #[derive(Default, Deserialize)]
    struct Telling {
        input: Option<IgnoredAny>,
        inputs: Option<IgnoredAny>,
        documents: Option<IgnoredAny>,
    }
    let telling: Telling = serde_json::from_slice(body).unwrap_or_default();
    match task {
        Task::Embed if telling.input.is_some() && telling.inputs.is_none() => Target::Embeddings,
        Task::Embed => Target::Embed,
        Task::Rerank if telling.documents.is_some() => Target::OpenAiRerank,
        Task::Rerank if telling.inputs.is_none() => Target::Rerank,
        _ => Target::Predict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_and_fields_tell_whose_body_it_is() {
        for (task, body, expected) in [
            (Task::Embed, r#"{"inputs": "a"}"#, Target::Embed),
            (Task::Embed, r#"{"input": "a"}"#, Target::Embeddings),
            (Task::Classify, r#"{"inputs": "a"}"#, Target::Predict),
            (Task::FillMask, r#"{"inputs": "a"}"#, Target::Predict),
            (
                Task::Rerank,
                r#"{"query": "a", "texts": []}"#,
                Target::Rerank,
            ),
            (
                Task::Rerank,
                r#"{"query": "a", "documents": []}"#,
                Target::OpenAiRerank,
            ),
            (Task::Rerank, r#"{"inputs": ["a", "b"]}"#, Target::Predict),
            (Task::Embed, "{", Target::Embed),
            (Task::Rerank, "", Target::Rerank),
        ] {
            assert_eq!(target(task, body.as_bytes()), expected, "{body}");
        }
    }
}
