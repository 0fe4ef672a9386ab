//! Paths of requests as clients join them from a base URL and a route: with doubled slashes, or one at the end; and as
//! proxies pass them on: with the path under which they publish the server.

use axum::extract::Request;
use axum::http::Uri;

/// Beginning of paths of pages in the documentation, whose last slash counts.
const DOCUMENTATION: &str = "/docs";

/// The request with the path that its client means. `root`: path under which a proxy publishes the server; empty: none. A
/// proxy may take it away itself.
pub fn normalize(mut request: Request, root: &str) -> Request {
    let given = request.uri().path();
    let below = below_root(given, root);
    let path = match normalized(below) {
        Some(path) => path,
        None if below.len() < given.len() => below.to_owned(),
        None => return request,
    };
    let query = request.uri().query();
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = format!("{path}{query}").parse().ok();
    if parts.path_and_query.is_some()
        && let Ok(uri) = Uri::from_parts(parts)
    {
        *request.uri_mut() = uri;
    }
    request
}

/// The part of `path` after `root`; all of it where it does not begin so.
fn below_root<'a>(path: &'a str, root: &str) -> &'a str {
    match path.strip_prefix(root) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// `path` with single slashes and none at its end; `None` if it is so already.
fn normalized(path: &str) -> Option<String> {
    let is_normal = !path.contains("//") && (path == "/" || !path.ends_with('/'));
    if is_normal || path.starts_with(DOCUMENTATION) {
        return None;
    }
    let parts = path.split('/').filter(|part| !part.is_empty());
    let joined: String = parts.flat_map(|part| ["/", part]).collect();
    Some(match joined.as_str() {
        "" => "/".to_owned(),
        _ => joined,
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn slashes_are_single_and_none_is_last() {
        for (given, expected) in [
            ("/v1//models", "/v1/models"),
            ("//v1/models/", "/v1/models"),
            ("/generate/?a=b//c", "/generate?a=b//c"),
            ("//", "/"),
            ("/v1/models?x=/", "/v1/models?x=/"),
            ("/", "/"),
            ("/docs/", "/docs/"),
        ] {
            let request = Request::builder().uri(given).body(Body::empty());
            let request = normalize(request.expect("a request"), "");
            assert_eq!(request.uri().to_string(), expected, "{given}");
        }
    }

    #[test]
    fn the_root_path_may_stand_before_a_path() {
        for (given, expected) in [
            ("/llm/v1/models?x=1", "/v1/models?x=1"),
            ("/v1/models", "/v1/models"),
            ("/llm", "/"),
            ("/llm/", "/"),
            ("/llm//v1/models/", "/v1/models"),
            ("/llms/v1/models", "/llms/v1/models"),
            ("/llm/docs/", "/docs/"),
        ] {
            let request = Request::builder().uri(given).body(Body::empty());
            let request = normalize(request.expect("a request"), "/llm");
            assert_eq!(request.uri().to_string(), expected, "{given}");
        }
    }
}
