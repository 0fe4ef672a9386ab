//! The HTTP application: all routes, and the layers around them for API keys, compressed bodies, errors, CORS and
//! request ids.

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower::util::{MapRequest, option_layer};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::api;
use crate::api::routes::{ROUTES, dialect_of, openai_end};
use crate::error::{ApiError, ErrorKind, written};
use crate::http::abortable::{self, DialectOf, REQUEST_ID};
use crate::http::api_key::require_key;
use crate::http::{body_encoding, path, route};
use crate::observability::request_log;
use crate::state::AppState;

/// The whole application.
pub fn app(state: AppState) -> Router {
    let config = state.config();
    let cors = cors(&config.cors_allow_origin, !config.api_keys.is_empty());
    let root = config.settings.http.root_path.clone();
    // The models' creation time is that of the server.
    api::started_s();
    let routes: Router = Router::new()
        .merge(route::router(ROUTES))
        .merge(crate::openapi::routes(&root))
        .layer(from_fn_with_state(state.clone(), body_encoding::decode))
        .layer(from_fn_with_state(
            (state.clone(), dialect_of as DialectOf),
            abortable::run,
        ))
        .layer(from_fn_with_state(state.clone(), require_key))
        .layer(from_fn(write_errors))
        .layer(option_layer(cors))
        .layer(from_fn_with_state(state.clone(), request_id))
        .with_state(state);
    // Outside of the router, which would not find other paths.
    let normalize = move |request| path::normalize(request, &root);
    Router::new().fallback_service(MapRequest::new(routes, normalize))
}

/// The application of the port for monitors: health and metrics, without keys.
pub fn monitoring(state: AppState) -> Router {
    let routes = ROUTES
        .iter()
        .filter(|route| MONITORED.contains(&route.path));
    let mut router = Router::new();
    for &route in routes {
        let handler = move |State(state): State<AppState>, request: Request| async move {
            route.answer(request, state).await
        };
        router = router.route(route.path, get(handler));
    }
    router.layer(from_fn(write_errors)).with_state(state)
}

/// Paths of the port for monitors.
const MONITORED: [&str; 3] = ["/metrics", "/health", "/livez"];

/// Layer for cross-origin requests. The origins have been checked before; an empty list allows any, or with keys none.
fn cors(origins: &[String], has_keys: bool) -> Option<CorsLayer> {
    if origins.is_empty() && has_keys {
        return None;
    }
    let origins: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| origin.parse().ok())
        .collect();
    let is_any = origins.is_empty() || origins.iter().any(|origin| origin == "*");
    let allowed = if is_any {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins)
    };
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // OpenAI's client for browsers sends its own headers, and `*` would not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any())
        .allow_origin(allowed);
    Some(layer)
}

/// Writes errors that arose outside of a route, in the dialect of the path. Those of routing (unknown path, wrong
/// method) get a body here.
async fn write_errors(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    // A handler's own 404 and 405 have a body; the router's have none.
    let is_of_routing = !response.headers().contains_key(header::CONTENT_TYPE);
    let error = match response.status() {
        StatusCode::NOT_FOUND if is_of_routing => {
            ApiError::new(ErrorKind::NotFound, no_route(&path))
        }
        StatusCode::METHOD_NOT_ALLOWED if is_of_routing => ApiError::new(
            ErrorKind::MethodNotAllowed,
            format!("{path} does not take {method}; see /docs"),
        ),
        _ => return written(response, dialect_of(&path)),
    };
    let mut explained = error.into_response();
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        explained.headers_mut().insert(header::ALLOW, allow);
    }
    written(explained, dialect_of(&path))
}

/// Message for a path that has no route.
fn no_route(path: &str) -> String {
    match openai_end(path) {
        Some(route) if path != format!("/v1{route}") => format!(
            "there is no route {path}; OpenAI's API begins with /v1, as in /v1{route}: give the client a base URL that \
             ends in /v1"
        ),
        _ => format!("there is no route {path}; see /docs"),
    }
}

/// Adds the client's request id to the answer, or a new one. The request is recorded under it, and with `--log-requests`
/// logged.
async fn request_id(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
                .unwrap_or(HeaderValue::from_static("unknown"))
        });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    // Requests of other methods are those for the state of the server, which monitors send every few seconds.
    let is_recorded = request.method() == Method::POST;
    let mut response = if is_recorded {
        let shown_id = String::from_utf8_lossy(id.as_bytes()).into_owned();
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map_or("unknown", MatchedPath::as_str).to_owned();
        let is_logged = state.settings().output.log_requests;
        request_log::recorded(&shown_id, route, is_logged, next.run(request)).await
    } else {
        next.run(request).await
    };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

#[cfg(test)]
mod tests {
    use super::no_route;

    #[test]
    fn a_wrong_base_url_is_answered_with_the_right_one() {
        for path in ["/chat/completions", "/v1/v1/models", "/api/embeddings"] {
            assert!(no_route(path).contains("ends in /v1"), "{path}");
        }
        for path in ["/v1/moderations", "/generat"] {
            assert!(no_route(path).ends_with("see /docs"), "{path}");
        }
    }
}
