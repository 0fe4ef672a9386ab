use std::pin::pin;

use futures::{StreamExt, stream};
use gridwork_engine::{Event, Finish, FinishReason, GeneratedToken, GenerationError, Timing};
use serde_json::{Value, json};

use super::*;
use crate::api::anthropic::usage::CacheMarks;
use crate::api::conversation::answer::AnswerReader;
use crate::api::conversation::events::AnswerEvents;
use crate::api::openai::choice::RunningChoice;

const CACHING: Caching = Caching {
    marks: CacheMarks::None,
    block_tokens: 2,
};

type Events = Vec<Result<Event, GenerationError>>;

fn token(text: &str, reason: Option<FinishReason>) -> Result<Event, GenerationError> {
    Ok(Event::Token(GeneratedToken {
        id: 1,
        text: text.into(),
        offset_chars: 0,
        holds_text: false,
        logprob: None,
        special: false,
        top: Vec::new(),
        finish: reason.map(|reason| Finish {
            reason,
            num_generated_tokens: 2,
            num_cached_tokens: 6,
            timing: Timing::default(),
        }),
    }))
}

/// The events of an answer, each with its `event:` line and its data.
async fn written(events: Events) -> Vec<(String, Value)> {
    let writer = MessageEvents {
        id: "msg_1".into(),
        model: "m".into(),
        max_tokens: Some(9),
        caching: CACHING,
    };
    let choice = RunningChoice::new(0, 0, stream::iter(events), None, false);
    let reader = AnswerReader::new(None, None, 10);
    let frames = pin!(AnswerEvents::new(writer, choice, reader, Box::new(|_| {})));
    let bytes: Vec<u8> = frames.map(|frame| frame.to_vec()).concat().await;
    let text = String::from_utf8(bytes).expect("text");
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        let data = data.strip_prefix("data: ").expect("data");
        (name.to_owned(), serde_json::from_str(data).expect("JSON"))
    };
    text.trim_end().split("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_text_is_streamed_in_the_order_of_the_api() {
    let stop = FinishReason::StopString("END".into());
    let events = written(vec![
        token("Hel", None),
        token("", None),
        token("lo", Some(stop)),
    ])
    .await;
    for (name, data) in &events {
        assert_eq!(data["type"], *name);
    }
    let data: Vec<Value> = events.into_iter().map(|(_, data)| data).collect();
    let usage = |input: u64, read: u64, output: u64| {
        json!({
            "input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": read,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output, "output_tokens_details": {"thinking_tokens": 0}, "service_tier": "standard",
        })
    };
    let text = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    assert_eq!(
        data,
        [
            json!({"type": "message_start", "message": {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
                "stop_reason": null, "stop_sequence": null,
                "usage": usage(10, 0, 0)}}),
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            text("Hel"),
            text("lo"),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": {"stop_reason": "stop_sequence", "stop_sequence": "END"},
                   "usage": usage(4, 6, 3)}),
            json!({"type": "message_stop"}),
        ]
    );
}

#[tokio::test]
async fn a_failure_is_an_event_that_ends_the_stream() {
    let events = written(vec![token("Hel", None), Err(GenerationError::Shutdown)]).await;
    let (name, data) = events.last().expect("events");
    assert_eq!(name, "error");
    assert_eq!(data["error"]["type"], "api_error");
}

#[test]
fn reasoning_and_calls_have_blocks_of_their_own() {
    let mut writer = MessageEvents {
        id: String::new(),
        model: String::new(),
        max_tokens: None,
        caching: CACHING,
    };
    let mut out = Vec::new();
    let thinking = Block::Reasoning("Hm".into());
    writer.begin(&mut out, 0, &thinking);
    writer.delta(&mut out, 0, &thinking, "Hm", &[]);
    writer.end(&mut out, 0, &thinking);
    let call = Block::Call(crate::api::conversation::blocks::Call {
        id: "call_1".into(),
        name: "f".into(),
        arguments: "{}".into(),
    });
    writer.begin(&mut out, 1, &call);
    writer.delta(&mut out, 1, &call, "{}", &[]);
    let text = String::from_utf8(out).expect("text");
    for part in [
        r#""content_block":{"type":"thinking","thinking":"","signature":""}"#,
        r#""delta":{"type":"thinking_delta","thinking":"Hm"}"#,
        r#""delta":{"type":"signature_delta","signature":""#,
        r#""content_block":{"type":"tool_use","id":"call_1","name":"f","input":{}}"#,
        r#""delta":{"type":"input_json_delta","partial_json":"{}"}"#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
