use std::sync::{Arc, Mutex};

use gridwork_engine::FinishReason;
use serde_json::{Value, json};

use super::*;
use crate::api::conversation::answer::Tokens;
use crate::api::conversation::blocks::{BlockSink, Blocks};
use crate::api::responses::request::{Item, ResponsesRequest};
use crate::api::responses::tools::Tools;
use crate::tool_calls::Piece;

struct Sink<'a>(&'a mut ResponseEvents, &'a mut Vec<u8>);

impl BlockSink for Sink<'_> {
    fn begin(&mut self, at: usize, block: &Block) {
        self.0.begin(self.1, at, block);
    }

    fn delta(&mut self, at: usize, block: &Block, text: &str, logprobs: &[TokenLogprob]) {
        self.0.delta(self.1, at, block, text, logprobs);
    }

    fn end(&mut self, at: usize, block: &Block) {
        self.0.end(self.1, at, block);
    }
}

type Kept = Arc<Mutex<Option<ResponseBody>>>;

fn writer() -> (ResponseEvents, Kept) {
    let tools: Vec<Item> = serde_json::from_value(json!([
        {"type": "function", "name": "look"}, {"type": "custom", "name": "patch"}]))
    .expect("tools");
    let maker = ItemMaker {
        tools: Tools::read(&tools).expect("tools"),
        packs_reasoning: true,
    };
    let response = ResponseBody::begin(&mut ResponsesRequest::default(), "m", true);
    let kept = Kept::default();
    let keep = kept.clone();
    let on_complete = move |response: &ResponseBody| {
        *keep.lock().expect("a lock") = Some(response.clone());
    };
    (
        ResponseEvents::new(response, maker, Box::new(on_complete)),
        kept,
    )
}

fn call(name: &str, arguments: &str) -> [Piece; 3] {
    [
        Piece::CallBegin {
            index: 0,
            id: format!("call_{name}"),
            name: name.into(),
        },
        Piece::CallArguments {
            index: 0,
            json_fragment: arguments.into(),
        },
        Piece::CallEnd { index: 0 },
    ]
}

fn pieces() -> Vec<Piece> {
    let mut pieces = vec![
        Piece::Reasoning("Hm.".into()),
        Piece::Content("He".into()),
        Piece::Content("llo".into()),
    ];
    pieces.extend(call("look", "{\"a\":1}"));
    pieces.extend(call("patch", "{\"input\":\"*** Begin\"}"));
    pieces
}

fn answer(blocks: Vec<Block>, reason: FinishReason) -> Answer {
    Answer {
        blocks,
        reason,
        tokens: Tokens {
            prompt: 10,
            cached: 6,
            generated: 5,
            reasoning: 2,
        },
    }
}

/// The events of a stream of `pieces`.
fn streamed(pieces: Vec<Piece>, reason: FinishReason) -> (Vec<Value>, Kept) {
    let (mut events, kept) = writer();
    let mut out = Vec::new();
    events.start(&mut out, 10);
    let mut blocks = Blocks::default();
    let mut sink = Sink(&mut events, &mut out);
    for piece in pieces {
        blocks.push(piece, &mut sink);
    }
    let blocks = blocks.finish(&mut sink);
    events.finish(&mut out, answer(blocks, reason));
    let text = String::from_utf8(out).expect("text");
    let event = |event: &str| -> Value {
        let (name, data) = event.split_once("\ndata: ").expect("two lines");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(
            Some(name),
            data["type"]
                .as_str()
                .map(|name| format!("event: {name}"))
                .as_deref()
        );
        data
    };
    (text.trim_end().split("\n\n").map(event).collect(), kept)
}

#[test]
fn events_come_in_the_order_of_the_api() {
    let (events, kept) = streamed(pieces(), FinishReason::EndOfSequence);
    let names: Vec<_> = events
        .iter()
        .map(|event| {
            event["type"]
                .as_str()
                .unwrap_or_default()
                .trim_start_matches("response.")
        })
        .collect();
    assert_eq!(
        names,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
            "completed",
        ]
    );
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["status"], "completed");
    assert_eq!(
        last["usage"]["output_tokens_details"]["reasoning_tokens"],
        2
    );
    assert_eq!(last["usage"]["input_tokens_details"]["cached_tokens"], 6);
    let items: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|event| &event["item"])
        .collect();
    assert_eq!(json!(items), last["output"]);
    let kept = kept.lock().expect("a lock").clone().expect("a response");
    assert_eq!(serde_json::to_value(kept).expect("JSON"), *last);
}

#[test]
fn deltas_belong_to_their_item_and_join_to_its_text() {
    let (events, _) = streamed(pieces(), FinishReason::EndOfSequence);
    let (added, deltas): (Vec<_>, Vec<_>) = (
        events
            .iter()
            .filter(|event| event["type"] == "response.output_item.added")
            .collect(),
        events
            .iter()
            .filter(|event| event.get("delta").is_some())
            .collect(),
    );
    for delta in deltas {
        let at = usize::try_from(delta["output_index"].as_u64().expect("an index")).expect("small");
        assert_eq!(added[at]["item"]["id"], delta["item_id"]);
    }
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(text, "Hello");
    let custom = events
        .iter()
        .find(|event| event["type"] == "response.custom_tool_call_input.done")
        .expect("a custom call");
    assert_eq!(custom["input"], "*** Begin");
}

#[test]
fn a_whole_response_has_the_output_of_a_streamed_one() {
    let (events, _) = streamed(pieces(), FinishReason::EndOfSequence);
    let mut blocks = Blocks::default();
    let mut nobody = crate::api::conversation::blocks::Unobserved;
    for piece in pieces() {
        blocks.push(piece, &mut nobody);
    }
    let blocks = blocks.finish(&mut nobody);
    let (writer, kept) = writer();
    let whole = writer.response(answer(blocks, FinishReason::EndOfSequence));
    let without_ids = |mut output: Value| {
        for item in output.as_array_mut().into_iter().flatten() {
            item["id"] = Value::Null;
        }
        output
    };
    assert_eq!(
        without_ids(serde_json::to_value(&whole.output).expect("JSON")),
        without_ids(events[events.len() - 1]["response"]["output"].clone())
    );
    assert_eq!(*kept.lock().expect("a lock"), Some(whole));
}

#[test]
fn an_answer_that_reaches_its_maximum_is_incomplete() {
    let (events, _) = streamed(vec![Piece::Content("a".into())], FinishReason::Length);
    let last = &events[events.len() - 1];
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(
        last["response"]["incomplete_details"]["reason"],
        "max_output_tokens"
    );
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[test]
fn a_failure_ends_the_stream_with_its_reason() {
    let (mut writer, kept) = writer();
    let mut out = Vec::new();
    writer.start(&mut out, 1);
    let error = ApiError::new(crate::error::ErrorKind::Generation, "the shard is gone");
    writer.fail(&mut out, &error);
    let text = String::from_utf8(out).expect("text");
    assert!(text.contains("event: response.failed\n"), "{text}");
    assert!(text.contains("the shard is gone"));
    assert_eq!(*kept.lock().expect("a lock"), None);
}

#[test]
fn a_response_in_the_background_is_queued_until_its_first_token() {
    let mut request = ResponsesRequest {
        background: Some(true),
        ..ResponsesRequest::default()
    };
    let response = ResponseBody::begin(&mut request, "m", true);
    assert_eq!(
        (response.status, response.background),
        (Status::Queued, true)
    );
    let maker = ItemMaker {
        tools: Tools::read(&[]).expect("tools"),
        packs_reasoning: false,
    };
    let mut writer = ResponseEvents::new(response, maker, Box::new(|_| {}));
    let mut out = Vec::new();
    writer.start(&mut out, 3);
    let mut blocks = Blocks::default();
    blocks.push(
        Piece::Content("Hi".into()),
        &mut Sink(&mut writer, &mut out),
    );
    let text = String::from_utf8(out).expect("text");
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("event: response."))
        .collect();
    assert_eq!(
        names[..4],
        ["created", "queued", "in_progress", "output_item.added"]
    );
}
