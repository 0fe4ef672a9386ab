//! Handlers of stored responses: `GET` and `DELETE /v1/responses/{id}`, their input items, and `cancel`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::request::Item;
use super::response::ResponseBody;
use crate::api_keys::current_tenant_id;
use crate::error::{ApiError, ErrorKind};
use crate::http::route::LISTED;
use crate::http::sse;
use crate::state::AppState;
use crate::stored_responses::StoredResponse;

type PathId = Result<Path<String>, PathRejection>;

/// Default and maximum number of items in a list; OpenAI's.
const DEFAULT_ITEMS: usize = 20;
const MAX_ITEMS: usize = 100;

/// Form of a stored response.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ResponseQuery {
    /// Answer with the response's events, those to come included. Of responses in the background alone.
    #[param(default = false)]
    pub stream: Option<bool>,
    /// `sequence_number` of the last event that is not sent again; needs `stream`.
    #[param(minimum = 0)]
    pub starting_after: Option<usize>,
}

/// A stored response
///
/// Also one that still runs in the background.
#[utoipa::path(
    get,
    path = LISTED,
    params(("id" = String, Path, description = "Id of the response"), ResponseQuery),
    responses(
        (status = 200, description = "The response; with `stream`, its events", content(
            (ResponseBody = "application/json"),
            (Object = "text/event-stream"),
        )),
        (status = 400, description = "Not valid, or it has no events; `param` names the field"),
        (status = 404, description = "It is not stored for this API key"),
    )
)]
pub async fn response(
    State(state): State<AppState>,
    id: PathId,
    query: Result<Query<ResponseQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::validation("query", error.body_text()))?;
    let id = id_of(id)?;
    let stream = query.stream.unwrap_or(false);
    if query.starting_after.is_some() && !stream {
        return Err(ApiError::validation(
            "starting_after",
            "`starting_after` is only allowed when `stream` is true",
        ));
    }
    let first = query
        .starting_after
        .map_or(0, |last| last.saturating_add(1));
    if let Some(running) = state.stored_responses().running(current_tenant_id(), &id) {
        return Ok(match stream {
            true => sse::response(running.events_from(first)),
            false => json(running.response()),
        });
    }
    let stored = find(&state, &id)?;
    if !stream {
        return Ok(json(stored.response.clone()));
    }
    if stored.events.is_empty() {
        return Err(ApiError::validation(
            "stream",
            format!(
                "the response {id:?} did not run in the background with its events kept; read it without `stream`"
            ),
        ));
    }
    let events = stored.events.get(first..).unwrap_or_default();
    Ok(sse::response(futures::stream::iter(events.to_vec())))
}

fn json(text: String) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], text).into_response()
}

/// Answer to the removal of a response.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Deleted {
    pub id: String,
    #[schema(example = "response")]
    pub object: String,
    pub deleted: bool,
}

/// Remove a stored response
///
/// Responses that continue it can still be continued.
#[utoipa::path(
    delete,
    path = LISTED,
    params(("id" = String, Path, description = "Id of the response")),
    responses(
        (status = 200, description = "It is removed", body = Deleted),
        (status = 404, description = "It is not stored for this API key"),
    )
)]
pub async fn delete(State(state): State<AppState>, id: PathId) -> Result<Json<Deleted>, ApiError> {
    let id = id_of(id)?;
    let (store, owner) = (state.stored_responses(), current_tenant_id());
    if let Some(running) = store.running(owner, &id) {
        store.end(owner, &id);
        running.abort();
    } else if !store.remove(owner, &id) {
        return Err(not_found("id", &id));
    }
    Ok(Json(Deleted {
        id,
        object: "response".into(),
        deleted: true,
    }))
}

/// Cancel a response that runs in the background
///
/// For a response that has ended, the answer is the response. Others are cancelled by closing their connection.
#[utoipa::path(
    post,
    path = LISTED,
    params(("id" = String, Path, description = "Id of the response")),
    responses(
        (status = 200, description = "The response; its generation has ended", body = ResponseBody),
        (status = 400, description = "It did not run in the background"),
        (status = 404, description = "It is not stored for this API key"),
    )
)]
pub async fn cancel(State(state): State<AppState>, id: PathId) -> Result<Response, ApiError> {
    let id = id_of(id)?;
    if let Some(running) = state.stored_responses().running(current_tenant_id(), &id) {
        running.abort();
        // The reader of its events ends it.
        running.ended().await;
        return Ok(json(running.response()));
    }
    let stored = find(&state, &id)?;
    let response: Value = serde_json::from_str(&stored.response).unwrap_or_default();
    if response["background"] == Value::Bool(true) {
        return Ok(json(stored.response.clone()));
    }
    Err(ApiError::validation(
        "id",
        format!(
            "the response {id:?} did not run in the background, so that it cannot be cancelled; close the connection of \
             a response to cancel it"
        ),
    ))
}

/// Part of the items to list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Maximum number of items, 1 to 100.
    #[param(default = 20, minimum = 1, maximum = 100)]
    pub limit: Option<usize>,
    /// `asc`, or `desc` for the last item first.
    #[param(default = "desc")]
    pub order: Option<String>,
    /// Id of the item after which the list begins.
    pub after: Option<String>,
}

/// A list of items.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ItemList {
    #[schema(example = "list")]
    pub object: String,
    #[schema(value_type = Vec<Object>)]
    pub data: Vec<Item>,
    pub first_id: Option<Value>,
    pub last_id: Option<Value>,
    /// True if there are items after the last one of the list.
    pub has_more: bool,
}

/// Items of a stored response's input
#[utoipa::path(
    get,
    path = LISTED,
    params(("id" = String, Path, description = "Id of the response"), ListQuery),
    responses(
        (status = 200, description = "The items", body = ItemList),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 404, description = "It is not stored for this API key"),
    )
)]
pub async fn input_items(
    State(state): State<AppState>,
    id: PathId,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<ItemList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::validation("query", error.body_text()))?;
    let id = id_of(id)?;
    let input = match state.stored_responses().running(current_tenant_id(), &id) {
        Some(running) => running.input.clone(),
        None => find(&state, &id)?.input.clone(),
    };
    let items = serde_json::from_str(&input).unwrap_or_default();
    list(items, &query).map(Json)
}

fn list(mut items: Vec<Item>, query: &ListQuery) -> Result<ItemList, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_ITEMS);
    if !(1..=MAX_ITEMS).contains(&limit) {
        return Err(ApiError::validation(
            "limit",
            format!("`limit` must be >= 1 and <= {MAX_ITEMS}. Given: {limit}"),
        ));
    }
    match query.order.as_deref() {
        Some("asc") => {}
        Some("desc") | None => items.reverse(),
        Some(other) => {
            return Err(ApiError::validation(
                "order",
                format!("`order` must be \"asc\" or \"desc\". Given: {other:?}"),
            ));
        }
    }
    if let Some(after) = &query.after {
        let at = items.iter().position(|item| has_id(item, after));
        let at = at.ok_or_else(|| {
            ApiError::validation(
                "after",
                format!("`after` is {after:?}, which is no item's id"),
            )
        })?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Item>| item.and_then(|item| item.get("id")).cloned();
    Ok(ItemList {
        object: "list".into(),
        first_id: id(items.first()),
        last_id: id(items.last()),
        data: items,
        has_more,
    })
}

fn id_of(id: PathId) -> Result<String, ApiError> {
    id.map(|Path(id)| id)
        .map_err(|error| ApiError::validation("id", error.body_text()))
}

fn find(state: &AppState, id: &str) -> Result<Arc<StoredResponse>, ApiError> {
    let stored = state.stored_responses().get(current_tenant_id(), id);
    stored.ok_or_else(|| not_found("id", id))
}

/// The stored response that another continues.
pub fn find_previous(state: &AppState, id: &str) -> Result<Arc<StoredResponse>, ApiError> {
    if state
        .stored_responses()
        .running(current_tenant_id(), id)
        .is_some()
    {
        return Err(ApiError::validation(
            "previous_response_id",
            format!("the response {id:?} still runs in the background; wait until it has ended"),
        ));
    }
    let stored = state.stored_responses().get(current_tenant_id(), id);
    stored.ok_or_else(|| not_found("previous_response_id", id))
}

fn not_found(field: &str, id: &str) -> ApiError {
    ApiError {
        field: Some(field.to_owned()),
        ..ApiError::new(
            ErrorKind::NotFound,
            format!(
                "there is no stored response {id:?}; it was made with `store` false or another API key, was removed, or \
                 gave way to newer ones (--response-store-bytes)"
            ),
        )
    }
}

/// All items of a stored response's conversation, the oldest first: input and output, and those that it continues.
pub fn items_of(stored: &Arc<StoredResponse>) -> Vec<Item> {
    stored
        .chain()
        .iter()
        .flat_map(|part| own_items(part))
        .collect()
}

fn own_items(stored: &StoredResponse) -> Vec<Item> {
    #[derive(Deserialize)]
    struct Output {
        output: Vec<Item>,
    }
    // Both texts were written by this server.
    let mut items: Vec<Item> = serde_json::from_str(&stored.input).unwrap_or_default();
    let output: Option<Output> = serde_json::from_str(&stored.response).ok();
    items.extend(output.into_iter().flat_map(|response| response.output));
    items
}

/// The item `id` of any stored response of the caller.
pub fn find_item(state: &AppState, id: &str) -> Option<Item> {
    let stored = state
        .stored_responses()
        .with_item(current_tenant_id(), id)?;
    own_items(&stored).into_iter().find(|item| has_id(item, id))
}

fn has_id(item: &Item, id: &str) -> bool {
    item.get("id").and_then(Value::as_str) == Some(id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn items() -> Vec<Item> {
        serde_json::from_value(json!([{"id": "a"}, {"id": "b"}, {"id": "c"}])).expect("items")
    }

    fn listed(query: ListQuery) -> Result<(Vec<String>, bool), String> {
        let list = list(items(), &query).map_err(|error| error.field.unwrap_or_default())?;
        let ids: Vec<String> = list
            .data
            .iter()
            .filter_map(|item| item["id"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(
            list.first_id.as_ref().and_then(Value::as_str),
            ids.first().map(String::as_str)
        );
        Ok((ids, list.has_more))
    }

    fn query(limit: Option<usize>, order: Option<&str>, after: Option<&str>) -> ListQuery {
        ListQuery {
            limit,
            order: order.map(str::to_owned),
            after: after.map(str::to_owned),
        }
    }

    #[test]
    fn lists_have_an_order_a_beginning_and_a_limit() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        for (query, expected) in [
            (ListQuery::default(), (ids(&["c", "b", "a"]), false)),
            (query(Some(2), Some("asc"), None), (ids(&["a", "b"]), true)),
            (
                query(None, Some("desc"), Some("c")),
                (ids(&["b", "a"]), false),
            ),
            (query(None, Some("asc"), Some("c")), (ids(&[]), false)),
        ] {
            assert_eq!(listed(query), Ok(expected));
        }
        for (query, field) in [
            (query(Some(0), None, None), "limit"),
            (query(Some(101), None, None), "limit"),
            (query(None, Some("up"), None), "order"),
            (query(None, None, Some("z")), "after"),
        ] {
            assert_eq!(listed(query), Err(field.to_owned()));
        }
    }

    #[test]
    fn a_conversation_is_that_of_all_responses_it_continues() {
        let stored = |id: &str, previous| {
            let response = json!({"output": [{"id": format!("{id} out")}]}).to_string();
            let input = json!([{"id": format!("{id} in")}]).to_string();
            Arc::new(StoredResponse::new(
                id.into(),
                response,
                input,
                Vec::new(),
                previous,
            ))
        };
        let second = stored("2", Some(stored("1", None)));
        let ids: Vec<_> = items_of(&second)
            .iter()
            .filter_map(|item| item["id"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(ids, ["1 in", "1 out", "2 in", "2 out"]);
    }
}
