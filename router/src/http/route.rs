//! Routes of the API, and the way of a request to the handler of its route.
//!
//! `api::routes` lists all routes. The same method and path may be listed once for each task that a model can be served
//! for: [`router`] sends a request to the route that serves the loaded model.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use futures::future::BoxFuture;
use gridwork_proto::v1::{InfoResponse, Task};
use utoipa::openapi::OpenApi;

use crate::encoder::task_name;
use crate::error::{ApiError, Dialect, ErrorKind, written};
use crate::http::accounting::RequestAccounting;
use crate::http::extract::{ApiJson, Body};
use crate::observability::metrics;
use crate::observability::request_log;
use crate::observability::telemetry::{operation, request_span, trace_id};
use crate::state::AppState;

/// Path in the OpenAPI attributes of handlers, which utoipa requires. The list of routes has the paths.
pub const LISTED: &str = "";

/// API that a route belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// text-generation-inference's.
    Tgi,
    /// OpenAI's, and what other servers have added to it.
    OpenAi,
    /// text-embeddings-inference's.
    Tei,
    /// Anthropic's.
    Anthropic,
    /// Gridwork's own, for operators.
    Server,
}

impl Api {
    /// Dialect of the errors.
    pub fn dialect(self) -> Dialect {
        match self {
            Api::OpenAi => Dialect::OpenAi,
            Api::Tei => Dialect::Tei,
            Api::Anthropic => Dialect::Anthropic,
            Api::Tgi | Api::Server => Dialect::Tgi,
        }
    }

    /// Tag in the OpenAPI document.
    pub fn tag(self) -> &'static str {
        match self {
            Api::OpenAi => "OpenAI",
            Api::Tgi => "Text generation",
            Api::Tei => "Encoders",
            Api::Anthropic => "Anthropic",
            Api::Server => "Server",
        }
    }
}

/// Calls a handler with its request.
pub type Call = fn(Request, AppState) -> BoxFuture<'static, Response>;

/// A route of the API.
pub struct Route {
    /// GET, POST or DELETE.
    pub method: Method,
    /// Path as axum matches it.
    pub path: &'static str,
    pub api: Api,
    /// Tasks that a model must be served for.
    pub tasks: &'static [Task],
    /// Values of the label `route` of `gridwork_requests_total`: of whole answers, then of streams where they are
    /// counted apart. Empty for routes that are not counted.
    pub counted_as: &'static [&'static str],
    pub call: Call,
    /// OpenAPI document of the handler alone, with the path [`LISTED`]; `None` where another route has the
    /// documentation.
    pub openapi: Option<fn() -> OpenApi>,
    /// Sentence for the table of routes.
    pub summary: &'static str,
}

impl Route {
    /// Answers a request. Errors are written in the dialect of the route.
    pub async fn answer(&'static self, mut request: Request, state: AppState) -> Response {
        request.extensions_mut().insert(self);
        let response = (self.call)(request, state).await;
        written(response, self.api.dialect())
    }

    /// True if a request needs an API key, when the server has keys.
    pub fn needs_key(&self) -> bool {
        needs_key(&self.method, self.path)
    }

    fn serves(&self, task: Task) -> bool {
        self.tasks.contains(&task)
    }

    fn method_filter(&self) -> MethodFilter {
        match self.method {
            Method::GET => MethodFilter::GET,
            Method::DELETE => MethodFilter::DELETE,
            _ => MethodFilter::POST,
        }
    }
}

/// Paths that tell nothing but whether the server works, for load balancers and orchestrators.
const OPEN: [&str; 4] = ["/", "/health", "/livez", "/ping"];

/// True if a request needs an API key, when the server has keys: unless it only asks whether the server works.
pub fn needs_key(method: &Method, path: &str) -> bool {
    !(matches!(*method, Method::GET | Method::HEAD) && OPEN.contains(&path))
}

/// A router for `routes`.
pub fn router(routes: &'static [&'static Route]) -> Router<AppState> {
    let same = |a: &Route, b: &Route| (&a.method, a.path) == (&b.method, b.path);
    let mut router = Router::new();
    for (index, &route) in routes.iter().enumerate() {
        if routes[..index].iter().any(|earlier| same(earlier, route)) {
            continue;
        }
        let handler = move |State(state): State<AppState>, request: Request| async move {
            let mut candidates = routes.iter().filter(|other| same(other, route));
            let served = served_task(&state);
            match served.map_or(Some(&route), |task| {
                candidates.find(|other| other.serves(task))
            }) {
                Some(route) => route.answer(request, state).await,
                None => {
                    let served = served.unwrap_or_default();
                    let error = wrong_task(request.uri().path(), served, &instead(routes, served));
                    written(error.into_response(), route.api.dialect())
                }
            }
        };
        router = router.route(route.path, on(route.method_filter(), handler));
    }
    router
}

/// Task that the loaded model is served for; `None` while it is loading.
pub fn served_task(state: &AppState) -> Option<Task> {
    let generates = || state.engine().loaded().map(|_| Task::Generate);
    state
        .encoder()
        .loaded()
        .map(|info| info.task())
        .or_else(generates)
}

/// The refusal of a request to `path`, while the model is served for another task. `instead`: advice for the client.
fn wrong_task(path: &str, served: Task, instead: &str) -> ApiError {
    let task = task_name(served);
    ApiError::new(
        ErrorKind::WrongTask,
        format!("{path} is not for this model, which is served with --task {task}; {instead}"),
    )
}

/// Advice that names the routes for a task.
fn instead(routes: &[&Route], task: Task) -> String {
    let counted = routes
        .iter()
        .filter(|route| !route.counted_as.is_empty() && route.openapi.is_some());
    let paths: Vec<&str> = counted
        .filter(|route| route.serves(task) && !ALL_TASKS.iter().all(|&task| route.serves(task)))
        .map(|route| route.path)
        .collect();
    match paths.split_last() {
        None => "see /docs".to_owned(),
        Some((last, [])) => format!("use POST {last}"),
        Some((last, others)) => format!("use POST {} or {last}", others.join(", ")),
    }
}

/// Every task that a model can be served for.
pub const ALL_TASKS: &[Task] = &[
    Task::Generate,
    Task::Embed,
    Task::Classify,
    Task::Rerank,
    Task::FillMask,
];

/// The route of a request and the request's headers, for its handler.
pub struct Arrival {
    pub route: &'static Route,
    headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for Arrival {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let route = parts.extensions.get::<&'static Route>().ok_or_else(|| {
            ApiError::new(
                ErrorKind::Internal,
                "the handler was called without its route",
            )
        })?;
        Ok(Arrival {
            route,
            headers: parts.headers.clone(),
        })
    }
}

impl Arrival {
    /// Counts the request and begins its accounting.
    pub fn begin(&self, state: &AppState) -> RequestAccounting {
        self.counted_as(self.route.counted_as.first(), state)
    }

    /// The same for a request whose answer is a stream.
    pub fn begin_stream(&self, state: &AppState) -> RequestAccounting {
        self.counted_as(self.route.counted_as.last(), state)
    }

    fn counted_as(&self, label: Option<&&'static str>, state: &AppState) -> RequestAccounting {
        if let Some(&label) = label {
            metrics::requests(label).increment(1);
        }
        let method = match self.route.method {
            Method::GET => "GET",
            Method::DELETE => "DELETE",
            _ => "POST",
        };
        let operation = operation(label.copied().unwrap_or_default());
        let model = state.served_name();
        let span = request_span(&self.headers, method, self.route.path, operation, model);
        request_log::note(|record| {
            record.trace_id = trace_id(&span);
            record.span = span.clone();
        });
        RequestAccounting::new(
            span,
            &state.settings().launch.compute_type,
            operation,
            model,
        )
    }

    /// The loaded encoder, when the route serves its task.
    pub fn encoder(&self, state: &AppState) -> Result<Arc<InfoResponse>, ApiError> {
        let info = state.encoder().ready()?;
        if self.route.serves(info.task()) {
            Ok(info)
        } else {
            Err(wrong_task(self.route.path, info.task(), "see /docs"))
        }
    }
}

/// A request that has arrived with a parsed body, for a handler whose requests are counted.
pub struct Received<T> {
    pub state: AppState,
    pub arrival: Arrival,
    pub request: T,
}

impl<T: Body> FromRequest<AppState> for Received<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let arrival = Arrival::from_request_parts(&mut parts, state).await?;
        let request = Request::from_parts(parts, body);
        let ApiJson(request) = ApiJson::from_request(request, state).await?;
        Ok(Received {
            state: state.clone(),
            arrival,
            request,
        })
    }
}

impl<T> Received<T> {
    /// Counts the request and begins its accounting.
    pub fn begin(self) -> (AppState, T, RequestAccounting) {
        let accounting = self.arrival.begin(&self.state);
        (self.state, self.request, accounting)
    }

    /// The same for a request whose answer is a stream.
    pub fn begin_stream(self) -> (AppState, T, RequestAccounting) {
        let accounting = self.arrival.begin_stream(&self.state);
        (self.state, self.request, accounting)
    }

    /// The same for a request to an encoder, with the arrival, which gives the loaded encoder.
    pub fn begin_encoding(self) -> (AppState, Arrival, T, RequestAccounting) {
        let accounting = self.arrival.begin(&self.state);
        (self.state, self.arrival, self.request, accounting)
    }
}
