//! The OpenAPI document, gathered from the handlers, and the page that shows it.

use axum::Router;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::api::{info, openai, tei, tgi};
use crate::state::AppState;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gridwork",
        description = "Text generation and encoders: an OpenAI-compatible API, text-generation-inference's own, and \
                       text-embeddings-inference's",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        tgi::generate,
        tgi::generate_stream,
        tgi::compat_generate,
        tgi::tokenize,
        tgi::chat_tokenize,
        tgi::invocations,
        openai::chat_completions,
        openai::completions,
        openai::embeddings,
        openai::rerank,
        openai::load_model,
        openai::models,
        openai::model,
        tei::embed,
        tei::embed_all,
        tei::embed_sparse,
        tei::similarity,
        tei::rerank,
        tei::predict,
        tei::decode,
        info::info,
        info::health,
        info::ping,
        info::metrics,
    ),
    tags(
        (name = "OpenAI", description = "As clients of OpenAI's API call it"),
        (name = "Text generation", description = "As clients of text-generation-inference call it"),
        (name = "Encoders", description = "As clients of text-embeddings-inference call it"),
        (name = "Server", description = "What an operator asks"),
    ),
    modifiers(&ApiKey)
)]
struct Document;

/// The API key, which only what is POSTed needs.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("api_key", scheme);
        let required = utoipa::openapi::SecurityRequirement::new("api_key", Vec::<String>::new());
        for path in document.paths.paths.values_mut() {
            if let Some(operation) = &mut path.post {
                operation.security = Some(vec![required.clone()]);
            }
        }
    }
}

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// `/api-doc/openapi.json`, and `/docs` that shows it.
pub fn routes() -> Router<AppState> {
    SwaggerUi::new("/docs")
        // Otherwise the page asks a server on the internet whether the document is valid.
        .config(Config::default().validator_url("none"))
        .url("/api-doc/openapi.json", document())
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn json() -> Value {
        serde_json::to_value(document()).expect("a document")
    }

    #[test]
    fn every_route_is_in_it() {
        let document = json();
        for (method, path) in [
            ("post", "/"),
            ("post", "/generate"),
            ("post", "/generate_stream"),
            ("post", "/tokenize"),
            ("post", "/chat_tokenize"),
            ("post", "/invocations"),
            ("post", "/v1/chat/completions"),
            ("post", "/v1/completions"),
            ("post", "/v1/embeddings"),
            ("post", "/embed"),
            ("post", "/embed_all"),
            ("post", "/embed_sparse"),
            ("post", "/similarity"),
            ("post", "/rerank"),
            ("post", "/predict"),
            ("post", "/decode"),
            ("post", "/v1/rerank"),
            ("post", "/load_model"),
            ("get", "/v1/models"),
            ("get", "/v1/models/{id}"),
            ("get", "/info"),
            ("get", "/health"),
            ("get", "/ping"),
            ("get", "/metrics"),
        ] {
            let operation = &document["paths"][path][method];
            assert!(
                operation["summary"].is_string(),
                "{method} {path}: {operation}"
            );
            assert_eq!(
                operation["security"].is_array(),
                method == "post",
                "{method} {path}"
            );
        }
        assert_eq!(
            document["components"]["securitySchemes"]["api_key"]["scheme"],
            "bearer"
        );
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
        check(&json(), &json());
    }
}
