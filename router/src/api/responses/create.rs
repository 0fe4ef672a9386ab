//! Handler of `POST /v1/responses`.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::events::{OnComplete, ResponseEvents};
use super::items::{ItemMaker, OutputItem};
use super::request::{Item, ResponsesRequest};
use super::response::ResponseBody;
use super::stored::{self, items_of};
use super::tools::Tools;
use super::translation::{self, ENCRYPTED_REASONING};
use super::{background, truncation};
use crate::api::conversation::history::with_one_instruction;
use crate::api::conversation::run::RunningAnswer;
use crate::api::conversation::text_or_list::TextOrList;
use crate::api::openai::chat::{Chat, ChatForm};
use crate::api_keys::current_tenant_id;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::route::{LISTED, Received};
use crate::http::sse;
use crate::running_requests::also_known_as;
use crate::state::AppState;
use crate::stored_responses::StoredResponse;

/// Form of this route's chats.
const FORM: ChatForm = ChatForm {
    dialect: Dialect::OpenAi,
    prompt: "input",
    max_new_tokens: Some("max_output_tokens"),
    clamps: true,
    fallback: Some(with_one_instruction),
};

/// Fields of a chat, and their names on this route.
const NAMES: [(&str, &str); 5] = [
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("messages", "input"),
];

/// Maximum size of the conversation that a request continues, in maximum sizes of a body.
const MAX_EARLIER_BODIES: usize = 8;
/// Maximum number of items of stored responses that a request refers to.
const MAX_REFERENCES: usize = 100;

/// Maximum number of `metadata`, and maximum number of characters of their names and values; OpenAI's.
const MAX_METADATA: usize = 16;
const MAX_METADATA_NAME: usize = 64;
const MAX_METADATA_VALUE: usize = 512;

/// Answer a conversation, in the form of OpenAI's Responses
///
/// With `stream`, the answer is a stream of server-sent events, from `response.created` to `response.completed`,
/// `response.incomplete` or `response.failed`, with a `sequence_number` that rises by one. An invalid request is refused
/// with its status before the stream begins.
///
/// With `background`, the answer is the response as it is at the beginning, `queued`. Its id tells how it goes on, at
/// `GET /v1/responses/{id}`; a client that has lost its stream gets the events it lacks there.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The response; with `stream`, events", content(
            (ResponseBody = "application/json"),
            (Object = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 404, description = "`previous_response_id` is not stored"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn create(call: Received<ResponsesRequest>) -> Result<Response, ApiError> {
    answer(call).await.map_err(|error| error.renamed(&NAMES))
}

async fn answer(call: Received<ResponsesRequest>) -> Result<Response, ApiError> {
    let (state, mut request, accounting) = call.begin();
    let state = &state;
    check(&request)?;
    let store = request.store.unwrap_or(true) && state.stored_responses().is_enabled();
    let background = request.background.unwrap_or(false);
    if background && !store {
        return Err(ApiError::validation(
            "background",
            "`background` needs `store`, and a server that keeps responses (--response-store-bytes)",
        ));
    }
    let input = input_items(state, request.input.take())?;
    let previous = request.previous_response_id.as_deref();
    let previous = previous
        .map(|id| stored::find_previous(state, id))
        .transpose()?;
    let earlier = earlier_items(state, previous.clone()).await?;
    let mut tools = Tools::read(request.tools.as_deref().unwrap_or_default())?;
    let mut chat = translation::chat(&request, &earlier, &input, &mut tools)?;
    if request.truncation.as_deref() == Some("auto") {
        chat = truncation::fitted(state, chat, &FORM).await?;
    }
    let chat = Chat::new(state, chat, &FORM)?;
    let answer = RunningAnswer::submit(chat, state, accounting).await?;

    let maker = ItemMaker {
        tools,
        packs_reasoning: request.includes(ENCRYPTED_REASONING),
    };
    let stream = request.stream.unwrap_or(false);
    let response = ResponseBody::begin(&mut request, state.served_name(), store);
    also_known_as(&response.id);
    if background {
        let events = ResponseEvents::new(response.clone(), maker, Box::new(|_| {}));
        let events = answer.events(events);
        let running = background::start(state, &response, events, &input, previous)?;
        return Ok(match stream {
            true => sse::response(running.events_from(0)),
            false => Json(response).into_response(),
        });
    }
    let events = ResponseEvents::new(response, maker, on_complete(state, store, input, previous));
    if stream {
        return Ok(answer.stream(events, sse::KEEP_ALIVE));
    }
    answer.whole(|answer| events.response(answer)).await
}

/// Items of the responses that a request continues. Long conversations are read on a worker thread.
async fn earlier_items(
    state: &AppState,
    previous: Option<Arc<StoredResponse>>,
) -> Result<Vec<Item>, ApiError> {
    let Some(previous) = previous else {
        return Ok(Vec::new());
    };
    let chain = previous.chain();
    let bytes: usize = chain.iter().map(|part| part.num_bytes()).sum();
    let limit = state
        .settings()
        .http
        .payload_limit
        .saturating_mul(MAX_EARLIER_BODIES);
    if bytes > limit {
        return Err(ApiError::validation(
            "previous_response_id",
            format!(
                "`previous_response_id` continues a conversation of {bytes} bytes, and it may have {limit} \
                 ({MAX_EARLIER_BODIES} times --payload-limit)"
            ),
        ));
    }
    let reading = state.workers().run(bytes, move || items_of(&previous));
    Ok(reading.await?)
}

/// Keeps the response, when it is to be stored.
fn on_complete(
    state: &AppState,
    store: bool,
    input: Vec<Item>,
    previous: Option<Arc<StoredResponse>>,
) -> OnComplete {
    if !store {
        return Box::new(|_| {});
    }
    let (kept, owner) = (state.stored_responses().clone(), current_tenant_id());
    Box::new(move |response| {
        let ids = input.iter().filter_map(|item| item.get("id")?.as_str());
        let outputs = response.output.iter().map(OutputItem::id);
        let item_ids = ids.chain(outputs).map(str::to_owned).collect();
        let texts = (
            serde_json::to_string(response),
            serde_json::to_string(&input),
        );
        if let (Ok(text), Ok(input)) = texts {
            let id = response.id.clone();
            let stored = StoredResponse::new(id, text, input, item_ids, previous);
            let is_kept = kept.keep(owner, stored);
            if !is_kept {
                tracing::debug!("a response is larger than --response-store-bytes allows to keep");
            }
        }
    })
}

/// The items of the input, with those that it refers to, and with ids.
fn input_items(state: &AppState, input: Option<TextOrList<Item>>) -> Result<Vec<Item>, ApiError> {
    let items = match input {
        None => return Ok(Vec::new()),
        Some(TextOrList::List(items)) => items,
        Some(TextOrList::Text(text)) => {
            let content = json!([{"type": "input_text", "text": text}]);
            let message = [
                ("type", Value::from("message")),
                ("role", "user".into()),
                ("content", content),
            ];
            vec![Map::from_iter(
                message.map(|(name, value)| (name.to_owned(), value)),
            )]
        }
    };
    let references = items.iter().filter(|item| is_reference(item)).count();
    if references > MAX_REFERENCES {
        return Err(ApiError::validation(
            "input",
            format!(
                "`input` may refer to {MAX_REFERENCES} items of stored responses. Given: {references}; use \
                 `previous_response_id`, or send the items themselves"
            ),
        ));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| resolved(state, item, index).map(with_id))
        .collect()
}

/// True for a reference to an item of a stored response. The type may be missing there.
fn is_reference(item: &Item) -> bool {
    match item.get("type") {
        Some(kind) => kind == "item_reference",
        None => !item.contains_key("role") && item.contains_key("id"),
    }
}

/// The item itself, or the stored one that an `item_reference` names.
fn resolved(state: &AppState, item: Item, index: usize) -> Result<Item, ApiError> {
    if !is_reference(&item) {
        return Ok(item);
    }
    let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
    stored::find_item(state, id).ok_or_else(|| {
        let field = format!("input[{index}].id");
        let message = format!(
            "`{field}` is {id:?}, and no stored response has an item of this id; send the item itself"
        );
        ApiError {
            field: Some(field),
            ..ApiError::new(ErrorKind::NotFound, message)
        }
    })
}

/// The item with an id, which the list of a stored response's items shows.
fn with_id(mut item: Item) -> Item {
    if !item.get("id").is_some_and(Value::is_string) {
        let id = format!("item_{}", uuid::Uuid::new_v4().simple());
        item.insert("id".into(), id.into());
    }
    item
}

/// Refuses fields that no part of the work would refuse.
fn check(request: &ResponsesRequest) -> Result<(), ApiError> {
    if let Some(truncation) = request.truncation.as_deref()
        && !["auto", "disabled"].contains(&truncation)
    {
        return Err(ApiError::validation(
            "truncation",
            format!("`truncation` must be \"auto\" or \"disabled\". Given: {truncation:?}"),
        ));
    }
    let metadata = request.metadata.iter().flatten();
    if metadata.clone().count() > MAX_METADATA {
        let message = format!("`metadata` must have at most {MAX_METADATA} entries");
        return Err(ApiError::validation("metadata", message));
    }
    for (name, value) in metadata {
        let fits = |text: &str, most: usize| text.chars().count() <= most;
        let is_text = value
            .as_str()
            .is_some_and(|value| fits(value, MAX_METADATA_VALUE));
        if !is_text || !fits(name, MAX_METADATA_NAME) {
            return Err(ApiError::validation(
                "metadata",
                format!(
                    "`metadata` must have names of up to {MAX_METADATA_NAME} characters, and texts of up to \
                     {MAX_METADATA_VALUE} as values"
                ),
            ));
        }
    }
    Ok(())
}
