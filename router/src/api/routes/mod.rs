//! The list of routes. The router, the OpenAPI document, the dialects of errors, the labels of metrics and the table in
//! docs/api.md are all made from it.

mod answers;
mod by_body;
mod table;

use axum::http::Method;
use gridwork_proto::v1::Task;
use utoipa::OpenApi;

use super::{abort, anthropic, info, openai, responses, tei, tgi, tokenizer_info};
use crate::error::Dialect;
use crate::http::route::{ALL_TASKS, Api, Route};
pub use table::table;

const ANY: &[Task] = ALL_TASKS;
const GENERATE: &[Task] = &[Task::Generate];
const EMBED: &[Task] = &[Task::Embed];
const RERANK: &[Task] = &[Task::Rerank];
const COMPARE: &[Task] = &[Task::Rerank, Task::Embed];
const FILL_MASK: &[Task] = &[Task::FillMask];
const PREDICT: &[Task] = &[Task::Classify, Task::Rerank, Task::FillMask];
const ENCODE: &[Task] = &[Task::Embed, Task::Classify, Task::Rerank, Task::FillMask];

/// Declares a static [`Route`] for each entry, and `ROUTES` of all of them.
macro_rules! routes {
    ($($name:ident: $method:ident $path:literal, $api:ident, $tasks:ident, $counted_as:expr,
        $($handler:ident)::+ $([$($documentation:tt)+])?, $summary:literal;)*) => {
        $(static $name: Route = Route {
            method: Method::$method,
            path: $path,
            api: Api::$api,
            tasks: $tasks,
            counted_as: &$counted_as,
            call: |request, state| Box::pin(axum::handler::Handler::call($($handler)::+, request, state)),
            openapi: routes!(@openapi ($($handler)::+) $($($documentation)+)?),
            summary: $summary,
        };)*

        /// All routes.
        pub static ROUTES: &[&Route] = &[$(&$name),*];
    };
    (@openapi ($($handler:tt)+)) => {
        Some(|| {
            #[derive(OpenApi)]
            #[openapi(paths($($handler)+))]
            struct Document;
            Document::openapi()
        })
    };
    (@openapi ($($handler:tt)+) undocumented) => { None };
    (@openapi ($($handler:tt)+) documented by $($other:tt)+) => { routes!(@openapi ($($other)+)) };
}

// Name: method path, API, tasks, labels of the metric, handler, summary. While the model is loading, the first route of
// a method and path answers.
routes! {
    CHAT_COMPLETIONS: POST "/v1/chat/completions", OpenAi, GENERATE, ["chat_completions"],
        openai::chat::chat_completions, "Answer a conversation";
    CHAT_RENDER: POST "/v1/chat/completions/render", OpenAi, GENERATE, [],
        openai::render::chat, "The prompt of a conversation and its tokens, without answering it";
    COMPLETION_RENDER: POST "/v1/completions/render", OpenAi, GENERATE, [],
        openai::render::completion, "The tokens of prompts, without continuing them";
    COMPLETIONS: POST "/v1/completions", OpenAi, GENERATE, ["completions"],
        openai::completions::completions, "Continue a text";
    RESPONSES: POST "/v1/responses", OpenAi, GENERATE, ["responses"],
        responses::create::create, "Answer a conversation, in the form of Responses";
    RESPONSE: GET "/v1/responses/{id}", OpenAi, GENERATE, [],
        responses::stored::response, "A stored response";
    DELETE_RESPONSE: DELETE "/v1/responses/{id}", OpenAi, GENERATE, [],
        responses::stored::delete, "Remove a stored response";
    CANCEL_RESPONSE: POST "/v1/responses/{id}/cancel", OpenAi, GENERATE, [],
        responses::stored::cancel, "Cancel a response that runs in the background";
    RESPONSE_ITEMS: GET "/v1/responses/{id}/input_items", OpenAi, GENERATE, [],
        responses::stored::input_items, "Items of a stored response's input";
    EMBEDDINGS: POST "/v1/embeddings", OpenAi, EMBED, ["embeddings"],
        openai::embeddings::embeddings, "Vectors of texts; [Encoders](#encoders) has more on all routes of encoders";
    // An alias, from text-embeddings-inference.
    EMBEDDINGS_OF_TEI: POST "/embeddings", OpenAi, EMBED, ["embeddings"],
        openai::embeddings::embeddings [undocumented], "The same";
    RERANK_DOCUMENTS: POST "/v1/rerank", OpenAi, RERANK, ["rerank"],
        openai::rerank::rerank, "Documents, by how well they answer a query, in the form of Jina and Cohere";
    RERANK_DOCUMENTS_V2: POST "/v2/rerank", OpenAi, RERANK, ["rerank"],
        openai::rerank::rerank [undocumented], "The same";
    SCORE: POST "/v1/score", OpenAi, COMPARE, ["score"],
        openai::score::score, "How well texts answer or resemble others, in vLLM's form";
    // An alias, from vLLM.
    SCORE_OF_VLLM: POST "/score", OpenAi, COMPARE, ["score"],
        openai::score::score [undocumented], "The same";
    MODELS: GET "/v1/models", OpenAi, ANY, [],
        openai::models::models, "The served model, under each of its names";
    MODEL: GET "/v1/models/{*id}", OpenAi, ANY, [],
        openai::models::model, "The served model, when it has this name";
    ABORT: POST "/abort_requests", OpenAi, GENERATE, [],
        abort::abort, "End requests by their ids, which are `x-request-id` or the `id` of an answer";
    // An alias, from SGLang.
    ABORT_OF_SGLANG: POST "/abort_request", OpenAi, GENERATE, [],
        abort::abort [undocumented], "The same";
    LOAD_MODEL: POST "/load_model", OpenAi, ANY, [],
        openai::warm::load_model, "An event that says `ready`, for `transformers chat`";
    DETOKENIZE: POST "/detokenize", OpenAi, ANY, [],
        openai::tokenize::detokenize, "The text of tokens, in vLLM's form";

    MESSAGES: POST "/v1/messages", Anthropic, GENERATE, ["messages"],
        anthropic::messages::messages, "Answer a conversation, in Anthropic's form";
    COUNT_TOKENS: POST "/v1/messages/count_tokens", Anthropic, GENERATE, [],
        anthropic::messages::count_tokens, "Number of tokens of a conversation";

    GENERATE_TEXT: POST "/generate", Tgi, GENERATE, ["generate"],
        tgi::generate::generate, "Continue a text";
    GENERATE_STREAM: POST "/generate_stream", Tgi, GENERATE, ["generate_stream"],
        tgi::stream::generate_stream, "The same, an event for every token";
    GENERATE_EITHER: POST "/", Tgi, GENERATE, ["generate", "generate_stream"],
        tgi::generate::compat_generate [documented by by_body::by_task], "Either of them, by `stream`";
    TOKENIZE: POST "/tokenize", Tgi, GENERATE, [],
        by_body::tokenize, "The tokens of a text; `prompt` and `messages` mean \
         [vLLM's form](#tokens)";
    CHAT_TOKENIZE: POST "/chat_tokenize", Tgi, GENERATE, [],
        tgi::tokenize::chat_tokenize, "The prompt that a conversation becomes, and its tokens";
    INVOCATIONS: POST "/invocations", Tgi, GENERATE, [],
        by_body::invocations, "Route of SageMaker: `messages` mean `/v1/chat/completions`, `prompt` means \
         `/v1/completions`, else `/`";

    VERTEX: POST "/vertex", Tgi, GENERATE, [],
        by_body::vertex, "Route of Vertex AI: what `/generate` and `/v1/chat/completions` answer to each of `instances`";

    EMBED_INPUTS: POST "/embed", Tei, EMBED, ["embed"],
        tei::embed::embed, "Vectors of texts";
    EMBED_ALL: POST "/embed_all", Tei, EMBED, ["embed_all"],
        tei::embed::embed_all, "A vector for each token";
    EMBED_SPARSE: POST "/embed_sparse", Tei, FILL_MASK, ["embed_sparse"],
        tei::embed::embed_sparse, "Sparse vectors over the vocabulary";
    SIMILARITY: POST "/similarity", Tei, EMBED, ["similarity"],
        tei::similarity::similarity, "Similarity of sentences to one";
    RERANK_TEXTS: POST "/rerank", Tei, RERANK, ["rerank"],
        by_body::rerank [documented by tei::rerank::rerank], "Texts, by how well they answer a query; `documents` mean \
         `/v1/rerank`";
    PREDICT_LABELS: POST "/predict", Tei, PREDICT, ["predict"],
        tei::predict::predict, "Labels of texts, or tokens for masks";
    TOKENIZE_INPUTS: POST "/tokenize", Tei, ENCODE, [],
        by_body::tokenize [undocumented], "The tokens of texts; `prompt` and `messages` mean [vLLM's form](#tokens)";
    DECODE: POST "/decode", Tei, ENCODE, [],
        tei::decode::decode, "The texts of tokens";
    BY_TASK: POST "/", Tei, ENCODE, [],
        by_body::by_task [undocumented], "`/embed`, `/predict` or `/rerank`, by the task";
    INVOCATIONS_BY_TASK: POST "/invocations", Tei, ENCODE, [],
        by_body::by_task [undocumented], "Route of SageMaker: `input` means `/v1/embeddings`, `documents` mean \
         `/v1/rerank`, else `/`";

    VERTEX_BY_TASK: POST "/vertex", Tei, ENCODE, [],
        by_body::vertex [undocumented], "Route of Vertex AI: what `/` answers to each of `instances`";

    HEALTH: GET "/health", Server, ANY, [],
        info::health, "200 when requests would be answered now, else 503 with `Retry-After` and the reason: loading, a \
         shard that hangs or is being restarted, shutting down";
    HEALTH_ROOT: GET "/", Server, ANY, [],
        info::health [undocumented], "The same";
    LIVEZ: GET "/livez", Server, ANY, [],
        info::livez, "200 while the server's process works, also while the model loads, a shard is restarted or the \
         server shuts down: an orchestrator that restarts on its failure must not ask `/health`";
    PING: GET "/ping", Server, ANY, [],
        info::ping, "The same, where SageMaker asks";
    INFO: GET "/info", Server, ANY, [],
        info::info, "Model, limits, versions; `batch_invariant` and `replay_invariant` say if answers depend on other \
         requests and on replays, and why: see \
         [server/README.md](../server/README.md#guarantees)";
    VERSION: GET "/version", Server, ANY, [],
        info::version, "Version of the server, in vLLM's form";
    TOKENIZER_INFO: GET "/tokenizer_info", Server, ANY, [],
        tokenizer_info::tokenizer_info, "The tokenizer's configuration and chat template, for clients with the API key";
    METRICS: GET "/metrics", Server, ANY, [],
        info::metrics, "See [metrics.md](metrics.md)";
}

/// Ends of paths that clients of OpenAI's API ask for and that are not served here.
const UNSERVED_ENDS: [&str; 3] = ["/moderations", "/audio/speech", "/audio/transcriptions"];

/// End of `path` that belongs to OpenAI's API, whatever stands before it: a client's base URL may be wrong.
pub fn openai_end(path: &str) -> Option<&'static str> {
    let path = path.trim_end_matches('/');
    let served = ROUTES
        .iter()
        .filter(|route| route.api == Api::OpenAi)
        .filter_map(|route| route.path.strip_prefix("/v1"))
        // A client with a wrong base URL creates objects, and has none to read by id.
        .filter(|end| !end.contains("{id}"))
        // Another API may have a route of that name, as `/rerank`.
        .filter(|end| listed(end).is_none_or(|route| route.api == Api::OpenAi));
    for end in served.chain(UNSERVED_ENDS) {
        match end.split_once("{*") {
            Some((start, _)) if path.starts_with(start) => {
                return Some(start.trim_end_matches('/'));
            }
            None if path.ends_with(end) => return Some(end),
            _ => {}
        }
    }
    None
}

fn listed(path: &str) -> Option<&'static Route> {
    ROUTES.iter().copied().find(|route| route.path == path)
}

/// Dialect of a path's errors: that of its route. Everything under `/v1/` and `/v2/` is OpenAI's, and so are paths that
/// end as OpenAI's do.
pub fn dialect_of(path: &str) -> Dialect {
    let is_below = |version: &str| {
        path.strip_prefix(version)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match listed(path) {
        Some(route) => route.api.dialect(),
        None if is_below("/v1/messages") => Dialect::Anthropic,
        None if is_below("/v1") || is_below("/v2") || openai_end(path).is_some() => Dialect::OpenAi,
        None => Dialect::Tgi,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_dialect_follows_the_path() {
        assert_eq!(dialect_of("/v1/completions"), Dialect::OpenAi);
        assert_eq!(dialect_of("/generate"), Dialect::Tgi);
        assert_eq!(dialect_of("/v1x"), Dialect::Tgi);
        assert_eq!(dialect_of("/embed"), Dialect::Tei);
        assert_eq!(dialect_of("/rerank"), Dialect::Tei);
        for path in [
            "/v2/rerank",
            "/chat/completions",
            "/completions/",
            "/openai/v1/chat/completions",
            "/models",
            "/models/org/m",
            "/embeddings",
        ] {
            assert_eq!(dialect_of(path), Dialect::OpenAi, "{path}");
        }
        assert_eq!(dialect_of("/v2x"), Dialect::Tgi);
        for path in [
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/messages/batches",
        ] {
            assert_eq!(dialect_of(path), Dialect::Anthropic, "{path}");
        }
    }

    #[test]
    fn no_two_routes_answer_the_same_request() {
        let mut seen = HashSet::new();
        for route in ROUTES {
            for task in route.tasks {
                let request = (&route.method, route.path, *task);
                assert!(seen.insert(request), "{request:?} is listed twice");
            }
        }
    }

    #[test]
    fn only_routes_that_are_posted_to_are_counted() {
        for route in ROUTES {
            assert!(route.method == Method::POST || route.counted_as.is_empty());
        }
    }
}
