//! The OpenAPI document of all routes, and the page that shows it.

mod errors;

use axum::Router;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi as Document};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::api::routes::ROUTES;
use crate::http::route::{LISTED, Route};
use crate::state::AppState;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gridwork",
        description = "Text generation and encoders: an OpenAI-compatible API, Anthropic's, text-generation-inference's own, \
                       and text-embeddings-inference's",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "OpenAI", description = "Routes of OpenAI's API"),
        (name = "Anthropic", description = "Routes of Anthropic's API"),
        (name = "Text generation", description = "Routes of text-generation-inference"),
        (name = "Encoders", description = "Routes of text-embeddings-inference"),
        (name = "Server", description = "Routes for operators"),
    )
)]
struct Frame;

/// Name of the security scheme for the API key.
const KEY_SCHEME: &str = "api_key";

/// The document.
pub fn document() -> Document {
    let mut document = Frame::openapi();
    let mut components = Components::default();
    let schemas = errors::ErrorSchemas::openapi().components;
    components
        .schemas
        .extend(schemas.unwrap_or_default().schemas);
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme(KEY_SCHEME, scheme);
    for route in ROUTES {
        let Some(openapi) = route.openapi else {
            continue;
        };
        let mut part = openapi();
        if let Some(schemas) = part.components {
            components.schemas.extend(schemas.schemas);
        }
        let Some(mut item) = part.paths.paths.remove(LISTED) else {
            continue;
        };
        for operation in [&mut item.get, &mut item.post, &mut item.delete]
            .into_iter()
            .flatten()
        {
            complete(operation, route);
        }
        let path = route.path.replace("{*", "{");
        document
            .paths
            .paths
            .entry(path)
            .or_insert_with(PathItem::default)
            .merge_operations(item);
    }
    document.components = Some(components);
    document
}

/// The document as it is served. `root`: path under which a proxy publishes the server; empty: none.
///
/// The schema of a stream is that of one of its events, whose `data` is JSON of the type that the route names.
fn json_document(root: &str) -> Value {
    let mut document = serde_json::to_value(document()).unwrap_or_default();
    describe_events(&mut document["paths"]);
    if !root.is_empty() {
        document["servers"] = json!([{"url": root}]);
    }
    document
}

fn describe_events(part: &mut Value) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.get_mut("schema") {
                    Some(data) if name == "text/event-stream" => {
                        *data = json!({
                            "type": "object",
                            "required": ["data"],
                            "properties": {
                                "event": {"type": "string"},
                                "data": {
                                    "type": "string",
                                    "contentMediaType": "application/json",
                                    "contentSchema": data.take(),
                                },
                            },
                        });
                    }
                    _ => describe_events(value),
                }
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(describe_events),
        _ => {}
    }
}

/// Adds to `operation` what the list says of its route.
fn complete(operation: &mut Operation, route: &Route) {
    operation.tags = Some(vec![route.api.tag().to_owned()]);
    errors::complete(operation, route);
    if route.needs_key() {
        let required = SecurityRequirement::new(KEY_SCHEME, Vec::<String>::new());
        operation.security = Some(vec![required]);
    }
}

/// `/api-doc/openapi.json`, and `/docs` that shows it. `root`: path under which a proxy publishes the server; empty: none.
pub fn routes(root: &str) -> Router<AppState> {
    // The page's address ends in `/docs/`, so that this holds below any root.
    let config = Config::new(["../api-doc/openapi.json"])
        // Otherwise the page asks a server on the internet whether the document is valid.
        .validator_url("none");
    SwaggerUi::new("/docs")
        .config(config)
        .external_url_unchecked("/api-doc/openapi.json", json_document(root))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_route_has_a_summary_and_its_security() {
        let document = json_document("");
        let documented = ROUTES.iter().filter(|route| route.openapi.is_some());
        assert_eq!(documented.clone().count(), 40);
        for route in documented {
            let path = route.path.replace("{*", "{");
            let method = route.method.as_str().to_ascii_lowercase();
            let operation = &document["paths"][path.as_str()][method.as_str()];
            assert!(
                operation["summary"].is_string(),
                "{method} {path}: {operation}"
            );
            assert_eq!(
                operation["security"].is_array(),
                route.needs_key(),
                "{method} {path}"
            );
        }
        assert_eq!(
            document["components"]["securitySchemes"]["api_key"]["scheme"],
            "bearer"
        );
    }

    #[test]
    fn the_schema_of_a_stream_is_that_of_an_event() {
        let document = json_document("");
        let stream =
            "/responses/200/content/text~1event-stream/schema/properties/data/contentSchema";
        for (path, name) in [
            ("~1generate_stream", "StreamResponse"),
            ("~1", "StreamResponse"),
            ("~1v1~1chat~1completions", "ChatCompletionChunk"),
        ] {
            let data = document.pointer(&format!("/paths/{path}/post{stream}"));
            let expected = json!({"$ref": format!("#/components/schemas/{name}")});
            assert_eq!(data, Some(&expected), "{path}");
        }
    }

    #[test]
    fn every_reference_has_its_schema() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let pointer = reference.trim_start_matches('#');
                        assert!(
                            document.pointer(pointer).is_some(),
                            "{reference} leads nowhere"
                        );
                    }
                    fields.values().for_each(|value| check(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = json_document("");
        check(&document, &document);
    }
}
