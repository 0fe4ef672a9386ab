//! Responses that are generated in the background: a task reads their events to the end, whether or not a client does.

use std::sync::Arc;

use axum::body::Bytes;
use futures::StreamExt;
use futures::stream::{AbortHandle, Abortable};
use serde_json::{Value, json};

use super::events::ResponseEvents;
use super::request::Item;
use super::response::{ResponseBody, Status};
use crate::api::conversation::events::{AnswerEvents, named_event};
use crate::api_keys::current_tenant_id;
use crate::error::{ApiError, ErrorKind};
use crate::state::AppState;
use crate::stored_responses::{RunningResponse, StoredResponse, StoredResponses};

/// Starts to read the events of a response. Refused when the store has no room for it.
pub fn start(
    state: &AppState,
    response: &ResponseBody,
    events: AnswerEvents<ResponseEvents>,
    input: &[Item],
    previous: Option<Arc<StoredResponse>>,
) -> Result<Arc<RunningResponse>, ApiError> {
    let internal = |error: serde_json::Error| ApiError::new(ErrorKind::Internal, error.to_string());
    let text = serde_json::to_string(response).map_err(internal)?;
    let input_text = serde_json::to_string(input).map_err(internal)?;
    let (abort, registration) = AbortHandle::new_pair();
    let running = RunningResponse::new(response.id.clone(), text, input_text, previous, abort);
    let running = Arc::new(running);
    let owner = current_tenant_id();
    let store = state.stored_responses().clone();
    if !store.begin(owner, &running) {
        return Err(ApiError::validation(
            "background",
            "the response and its input are larger than --response-store-bytes has room for; leave `background` out",
        ));
    }
    let input_ids = input.iter().filter_map(|item| item.get("id")?.as_str());
    let reader = Reader {
        store,
        owner,
        running: running.clone(),
        input_ids: input_ids.map(str::to_owned).collect(),
        seen: Seen::default(),
    };
    tokio::spawn(reader.read(Abortable::new(events, registration)));
    Ok(running)
}

/// Reads the events of one response.
struct Reader {
    store: StoredResponses,
    owner: Option<u32>,
    running: Arc<RunningResponse>,
    input_ids: Vec<String>,
    seen: Seen,
}

/// Facts that the events so far tell.
#[derive(Debug, Default)]
struct Seen {
    num_events: usize,
    /// Complete items of the output.
    items: Vec<Value>,
    /// The response at the end.
    last: Option<Value>,
}

impl Reader {
    async fn read(mut self, mut events: Abortable<AnswerEvents<ResponseEvents>>) {
        let mut has_room = true;
        while has_room && let Some(frame) = events.next().await {
            let events = split(&frame);
            let mut response = None;
            for event in &events {
                response = self.seen.see(event).or(response);
            }
            self.running.add(&events, response);
            has_room = self.store.make_room(self.owner);
        }
        // Ends the generation, if it has not ended.
        drop(events);
        self.end(has_room);
    }

    fn end(self, has_room: bool) {
        let Seen {
            num_events,
            items,
            last,
        } = self.seen;
        let now = || serde_json::from_str::<Value>(&self.running.response()).unwrap_or_default();
        let response = match last {
            Some(last) => last,
            None if has_room => with_output(now(), Status::Cancelled, items),
            None => {
                let mut response = with_output(now(), Status::Failed, items);
                response["error"] = json!({
                    "code": "server_error",
                    "message": "the response and its events became larger than --response-store-bytes has room for",
                });
                let event = json!({"type": "response.failed", "sequence_number": num_events, "response": response});
                let mut failed = Vec::new();
                named_event(&mut failed, "response.failed", &event);
                self.running.add(&[failed.into()], None);
                response
            }
        };
        let output = response["output"].as_array().into_iter().flatten();
        let ids = output.filter_map(|item| item["id"].as_str().map(str::to_owned));
        let item_ids = self.input_ids.into_iter().chain(ids).collect();
        let text = response.to_string();
        let events = self.running.end(text.clone());
        // A client may have removed it.
        if !self.store.end(self.owner, &self.running.id) {
            return;
        }
        let running = &self.running;
        let stored = StoredResponse::new(
            running.id.clone(),
            text,
            running.input.clone(),
            item_ids,
            running.previous.clone(),
        );
        let stored = if has_room {
            stored.with_events(events)
        } else {
            stored
        };
        if !self.store.keep(self.owner, stored) {
            tracing::debug!("a response is larger than --response-store-bytes allows to keep");
        }
    }
}

impl Seen {
    /// Notes what an event tells. Returns the response, if the event has it.
    fn see(&mut self, event: &[u8]) -> Option<String> {
        self.num_events += 1;
        let of_item = event.starts_with(b"event: response.output_item.done\n");
        let of_response = [
            "created",
            "queued",
            "in_progress",
            "completed",
            "incomplete",
            "failed",
        ]
        .iter()
        .any(|name| event.starts_with(format!("event: response.{name}\n").as_bytes()));
        if !of_item && !of_response {
            return None;
        }
        let data = event.split(|byte| *byte == b'\n').nth(1)?;
        let mut data: Value = serde_json::from_slice(data.strip_prefix(b"data: ")?).ok()?;
        if of_item {
            self.items.push(data["item"].take());
            return None;
        }
        let response = data["response"].take();
        let text = response.to_string();
        if !["queued", "in_progress"].contains(&response["status"].as_str()?) {
            self.last = Some(response);
        }
        Some(text)
    }
}

fn with_output(mut response: Value, status: Status, items: Vec<Value>) -> Value {
    response["status"] = json!(status);
    response["output"] = items.into();
    response
}

/// The single events of a frame.
fn split(frame: &Bytes) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut start = 0;
    // The data of an event is one line, so that an empty line ends it.
    for at in 1..frame.len() {
        if frame[at] == b'\n' && frame[at - 1] == b'\n' {
            events.push(frame.slice(start..=at));
            start = at + 1;
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        named_event(&mut out, name, data);
        out
    }

    #[test]
    fn frames_are_split_into_their_events() {
        let events = [event("a", &json!({"text": "\n\n"})), event("b", &json!({}))];
        let frame = Bytes::from(events.concat());
        assert_eq!(split(&frame), events);
    }

    #[test]
    fn events_tell_the_response_and_its_items() {
        let mut seen = Seen::default();
        let of_response = |status: &str| json!({"response": {"status": status}});
        assert!(
            seen.see(&event("response.queued", &of_response("queued")))
                .is_some()
        );
        let progress = seen.see(&event("response.in_progress", &of_response("in_progress")));
        assert_eq!(progress.as_deref(), Some(r#"{"status":"in_progress"}"#));
        let item = json!({"item": {"id": "msg_1"}});
        assert!(
            seen.see(&event("response.output_item.done", &item))
                .is_none()
        );
        assert!(
            seen.see(&event("response.output_text.delta", &json!({})))
                .is_none()
        );
        assert!(seen.last.is_none());
        assert_eq!(seen.items, [json!({"id": "msg_1"})]);
        seen.see(&event("response.completed", &of_response("completed")));
        assert_eq!(seen.last, Some(json!({"status": "completed"})));
        assert_eq!(seen.num_events, 5);
    }
}
