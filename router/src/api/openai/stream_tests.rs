//! Streams of answers, read back as a client reads them.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use gridwork_engine::{
    Event, FinishReason, GeneratedToken, GenerationError, PromptLogprob, Timing,
};
use serde_json::{Value, json};

use super::super::choice::Echo;
use super::super::chunk::Identity;
use super::super::parsed_choice::{CallForm, ChoiceParser};
use super::super::returned_tokens::ReturnedTokens;
use super::*;

type Events = UnboundedReceiver<Result<Event, GenerationError>>;
type Sender = UnboundedSender<Result<Event, GenerationError>>;

fn token(id: u32, text: &str) -> GeneratedToken {
    GeneratedToken {
        id,
        text: text.into(),
        offset_chars: 0,
        holds_text: false,
        logprob: Some(-0.5),
        special: false,
        top: Vec::new(),
        finish: None,
    }
}

/// With log-probabilities asked for: `offset_chars` and `holds_text` are set.
fn token_at(offset_chars: u64, holds_text: bool, token: GeneratedToken) -> GeneratedToken {
    GeneratedToken {
        offset_chars,
        holds_text,
        ..token
    }
}

fn last(id: u32, text: &str, reason: FinishReason) -> GeneratedToken {
    GeneratedToken {
        finish: Some(Finish {
            reason,
            num_generated_tokens: 0,
            num_cached_tokens: 3,
            timing: Timing::default(),
        }),
        ..token(id, text)
    }
}

fn send(sender: &Sender, token: GeneratedToken) {
    sender.unbounded_send(Ok(Event::Token(token))).unwrap();
}

/// End of a stream, reported once.
type Told = Arc<Mutex<String>>;

fn answer(
    kind: AnswerKind,
    choices: Vec<RunningChoice<Events>>,
    content: StreamContent,
) -> (AnswerStream<Events>, Told) {
    let identity = Identity {
        id: "x-1".into(),
        created: 1,
        model: "m".into(),
        system_fingerprint: "f".into(),
    };
    let encoder = ChunkEncoder::new(kind, &identity, choices.len() as u32, content.include_usage);
    let end = Told::default();
    let told = end.clone();
    let on_end: OnEnd = Box::new(move |end| {
        *told.lock().unwrap() = match end {
            StreamEnd::Complete(finishes) => format!("{} complete", finishes.len()),
            StreamEnd::Failed(error) => error.type_name().to_owned(),
            StreamEnd::Dropped => "dropped".to_owned(),
        }
    });
    (
        AnswerStream::new(kind, encoder, choices, 5, content, on_end),
        end,
    )
}

fn choice(index: u32) -> (Sender, RunningChoice<Events>) {
    let (sender, events) = unbounded();
    (sender, RunningChoice::new(index, 0, events, None, false))
}

/// The JSON of every event; `[DONE]` as a string.
fn read(frames: &[Bytes]) -> Vec<Value> {
    let text: String = frames
        .iter()
        .map(|frame| std::str::from_utf8(frame).unwrap())
        .collect();
    let events = text.split_terminator("\n\n").map(|event| {
        let data = event.strip_prefix("data: ").unwrap();
        serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))
    });
    events.collect()
}

async fn read_all(stream: AnswerStream<Events>) -> Vec<Value> {
    read(&stream.collect::<Vec<_>>().await)
}

fn tokenizer() -> Arc<Tokenizer> {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "added_tokens": [],
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    });
    Arc::new(Tokenizer::from_str(&json.to_string()).unwrap())
}

#[tokio::test]
async fn a_chat_begins_with_its_role_and_ends_with_finish_reason_and_done() {
    let (sender, choice) = choice(0);
    for text in ["", "Par", "is"] {
        send(&sender, token(0, text));
    }
    send(&sender, last(1, "", FinishReason::EndOfSequence));
    let (stream, end) = answer(AnswerKind::Chat, vec![choice], StreamContent::default());
    let events = read_all(stream).await;
    let deltas: Vec<_> = events[..3]
        .iter()
        .map(|e| e["choices"][0]["delta"].clone())
        .collect();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": "Par"}),
            json!({"content": "is"}),
            json!({"content": ""})
        ]
    );
    let reasons: Vec<_> = events[..3]
        .iter()
        .map(|e| &e["choices"][0]["finish_reason"])
        .collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &json!("stop")]);
    assert!(
        events[..3]
            .iter()
            .all(|e| e["id"] == "x-1" && e.get("usage").is_none())
    );
    assert_eq!(events[3], "[DONE]");
    assert_eq!(events.len(), 4);
    assert_eq!(*end.lock().unwrap(), "1 complete");
}

#[tokio::test]
async fn choices_interleave_as_their_tokens_come() {
    let (first, one) = choice(0);
    let (second, two) = choice(1);
    let (mut stream, _) = answer(
        AnswerKind::Completion,
        vec![one, two],
        StreamContent::default(),
    );
    send(&second, token(0, "b"));
    let frame = stream.next().await.unwrap();
    assert_eq!(read(&[frame])[0]["choices"][0]["index"], 1);
    send(&second, last(0, "!", FinishReason::Length));
    send(&first, token(0, "a"));
    send(&first, last(0, "?", FinishReason::StopToken(0)));
    let events = read_all(stream).await;
    let mut texts = [String::new(), String::new()];
    for event in &events[..3] {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["a?", "!"]);
    assert_eq!(events[3], "[DONE]");
}

#[tokio::test]
async fn usage_is_in_the_last_chunk_or_in_every_chunk() {
    let script = || {
        let (sender, choice) = choice(0);
        send(&sender, token(0, "a"));
        send(&sender, last(1, "b", FinishReason::Length));
        choice
    };
    let include = StreamContent {
        include_usage: true,
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Chat, vec![script()], include);
    let events = read_all(stream).await;
    assert!(
        events[..2]
            .iter()
            .all(|e| e.get("usage") == Some(&Value::Null))
    );
    assert_eq!(events[2]["choices"], json!([]));
    let total = json!({
        "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3},
    });
    assert_eq!(events[2]["usage"], total);

    let continuous = StreamContent {
        continuous_usage: true,
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Chat, vec![script()], continuous);
    let events = read_all(stream).await;
    assert_eq!(events[0]["usage"]["completion_tokens"], 1);
    assert_eq!(events[1]["usage"]["completion_tokens"], 2);
    assert_eq!(events[2], "[DONE]");
}

#[tokio::test]
async fn token_ids_come_with_the_text_that_they_belong_to() {
    for kind in [AnswerKind::Chat, AnswerKind::Completion] {
        let (sender, mut choice) = choice(0);
        choice.returned = Some(ReturnedTokens::new([7, 8].into()));
        send(&sender, token(0, "a"));
        send(&sender, token(1, ""));
        send(&sender, token(2, "b"));
        send(&sender, last(3, "", FinishReason::EndOfSequence));
        let (stream, _) = answer(kind, vec![choice], StreamContent::default());
        let events = read_all(stream).await;
        let of_choice = |field: &str| -> Vec<Value> {
            let choices = events[..3].iter().map(|event| &event["choices"][0]);
            choices.map(|choice| choice[field].clone()).collect()
        };
        assert_eq!(
            of_choice("token_ids"),
            [json!([0]), json!([1, 2]), json!([3])]
        );
        assert_eq!(
            of_choice("prompt_token_ids"),
            [json!([7, 8]), Value::Null, Value::Null]
        );
        assert_eq!(events[2]["choices"][0]["finish_reason"], "stop");
        assert_eq!(events[3], "[DONE]");
    }
}

#[tokio::test]
async fn a_failure_ends_the_stream_with_an_error_event() {
    let (sender, one) = choice(0);
    let (other, two) = choice(1);
    send(&sender, token(0, "a"));
    sender
        .unbounded_send(Err(GenerationError::NanLogits))
        .unwrap();
    let (stream, end) = answer(AnswerKind::Chat, vec![one, two], StreamContent::default());
    let events = read_all(stream).await;
    assert_eq!(events.len(), 2);
    assert!(
        events[1]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("NaN")
    );
    assert_eq!(*end.lock().unwrap(), "generation");
    assert!(other.is_closed(), "the other choice is aborted");
}

#[tokio::test]
async fn tokens_without_text_still_report_their_logprob() {
    let (sender, choice) = choice(0);
    send(&sender, token(0, ""));
    send(&sender, last(1, "ab", FinishReason::Length));
    let content = StreamContent {
        logprobs: Some(tokenizer()),
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Chat, vec![choice], content);
    let events = read_all(stream).await;
    let entry = |event: &Value| event["choices"][0]["logprobs"]["content"][0]["token"].clone();
    assert_eq!(entry(&events[0]), "a");
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(entry(&events[1]), "b");
    assert_eq!(events[1]["choices"][0]["delta"], json!({"content": "ab"}));
}

#[tokio::test]
async fn an_echo_comes_first_with_the_prompts_logprobs() {
    let (sender, events) = unbounded();
    let echo = Echo {
        text: "ab".into(),
        ids: vec![0, 1],
        offsets: vec![0, 1],
    };
    let choice = RunningChoice::new(0, 0, events, Some(Arc::new(echo)), false);
    let known = PromptLogprob {
        logprob: Some(-2.0),
        top: Vec::new(),
    };
    sender
        .unbounded_send(Ok(Event::PromptLogprobs(vec![
            PromptLogprob::default(),
            known,
        ])))
        .unwrap();
    send(&sender, token(0, "a"));
    send(
        &sender,
        token_at(1, false, last(1, "b", FinishReason::Length)),
    );
    let content = StreamContent {
        logprobs: Some(tokenizer()),
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Completion, vec![choice], content);
    let events = read_all(stream).await;
    assert_eq!(events[0]["choices"][0]["text"], "aba");
    let logprobs = &events[0]["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([null, -2.0, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(
        logprobs["top_logprobs"],
        json!([null, {"b": -2.0}, {"a": -0.5}])
    );
    assert_eq!(
        events[1]["choices"][0]["logprobs"]["text_offset"],
        json!([3])
    );
}

fn with_logprobs() -> StreamContent {
    StreamContent {
        logprobs: Some(tokenizer()),
        ..StreamContent::default()
    }
}

#[tokio::test]
async fn logprobs_wait_for_text_that_is_held_back() {
    let (sender, choice) = choice(0);
    send(&sender, token_at(0, false, token(0, "a")));
    send(&sender, token_at(1, true, token(1, "")));
    send(&sender, token_at(2, true, token(1, "")));
    send(
        &sender,
        token_at(3, false, last(0, "bba", FinishReason::Length)),
    );
    let (stream, _) = answer(AnswerKind::Completion, vec![choice], with_logprobs());
    let events = read_all(stream).await;
    assert_eq!(events.len(), 3, "two chunks, and the end");
    let choice = &events[1]["choices"][0];
    assert_eq!(choice["text"], "bba");
    assert_eq!(choice["logprobs"]["tokens"], json!(["b", "b", "a"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([1, 2, 3]));
}

#[tokio::test]
async fn tokens_of_a_stop_string_have_the_offset_of_the_texts_end() {
    let (sender, choice) = choice(0);
    send(&sender, token_at(0, true, token(0, "")));
    send(&sender, token_at(1, true, token(1, "")));
    let stop = FinishReason::StopString("bb".into());
    send(&sender, token_at(2, false, last(1, "a", stop)));
    let (stream, _) = answer(AnswerKind::Completion, vec![choice], with_logprobs());
    let events = read_all(stream).await;
    let choice = &events[0]["choices"][0];
    assert_eq!(choice["text"], "a");
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b", "b"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 1]));
}

#[tokio::test]
async fn echo_only_shows_nothing_generated() {
    let (sender, events) = unbounded();
    let echo = Echo {
        text: "ab".into(),
        ids: vec![0, 1],
        offsets: vec![],
    };
    let choice = RunningChoice::new(0, 0, events, Some(Arc::new(echo)), true);
    send(&sender, last(1, "b", FinishReason::EndOfSequence));
    let content = StreamContent {
        include_usage: true,
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Completion, vec![choice], content);
    let events = read_all(stream).await;
    assert_eq!(events[0]["choices"][0]["text"], "ab");
    assert_eq!(events[0]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[1]["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn a_stream_is_pending_while_no_token_is_ready() {
    let (sender, choice) = choice(0);
    let (mut stream, end) = answer(AnswerKind::Chat, vec![choice], StreamContent::default());
    let waited = tokio::time::timeout(Duration::from_millis(10), stream.next()).await;
    assert!(waited.is_err());
    send(&sender, token(0, "a"));
    assert!(stream.next().await.is_some());
    drop(stream);
    assert!(sender.is_closed());
    assert_eq!(*end.lock().unwrap(), "dropped");
}

#[tokio::test]
async fn long_echoes_are_spread_over_frames() {
    let echo = Arc::new(Echo {
        text: "x".repeat(FRAME_BYTES),
        ids: vec![0],
        offsets: Vec::new(),
    });
    let mut senders = Vec::new();
    let choices = (0..20)
        .map(|index| {
            let (sender, events) = unbounded();
            send(&sender, token(0, "a"));
            senders.push(sender);
            RunningChoice::new(index, 0, events, Some(echo.clone()), false)
        })
        .collect();
    let (mut stream, end) = answer(AnswerKind::Completion, choices, StreamContent::default());
    let mut frames = Vec::new();
    for _ in 0..20 {
        frames.push(stream.next().await.unwrap());
    }
    // All of them have been asked: none is left out until the next event of another.
    assert!(futures::poll!(stream.next()).is_pending());
    for sender in &senders {
        send(sender, last(1, "b", FinishReason::Length));
    }
    frames.extend(stream.collect::<Vec<_>>().await);
    assert!(frames.iter().all(|frame| frame.len() < 3 * FRAME_BYTES));
    for index in 0..20 {
        let texts = read(&frames).into_iter();
        let text: String = texts
            .filter(|event| event["choices"][0]["index"] == index)
            .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(text, echo.text.clone() + "ab");
    }
    assert_eq!(*end.lock().unwrap(), "20 complete");
}

/// A parser of calls in tags and of thoughts.
fn parser(shows_reasoning: bool) -> ChoiceParser {
    use crate::tool_calls::{ChatFormat, Choice, Plan, Tool};
    let choice = Choice {
        calls: Some("hermes"),
        reasoning: Some("qwen3"),
    };
    let format = ChatFormat::find(None, &tokenizer(), choice);
    let tools = Arc::new([Tool {
        name: "f".into(),
        parameters: json!({}),
        strict: false,
    }]);
    let plan = Plan::new(format.format, tools, true, "").unwrap();
    ChoiceParser::new(&plan, shows_reasoning, CallForm::Tools)
}

#[tokio::test]
async fn calls_and_thoughts_are_streamed_in_their_own_fields() {
    let (sender, mut choice) = choice(0);
    choice.parser = Some(parser(true));
    let texts = [
        "<think>hm",
        "</think>",
        "Yes",
        "<tool_call>{\"name\": \"f",
        "\", \"arguments\": {\"a\"",
        ": 1}}",
        "</tool_call>",
    ];
    for text in texts {
        send(&sender, token(0, text));
    }
    send(&sender, last(1, "", FinishReason::EndOfSequence));
    let content = StreamContent {
        include_usage: true,
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Chat, vec![choice], content);
    let events = read_all(stream).await;
    let deltas: Vec<Value> = events
        .iter()
        .filter_map(|event| event.get("choices")?.get(0))
        .map(|choice| choice["delta"].clone())
        .collect();
    let id = deltas[2]["tool_calls"][0]["id"].clone();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "reasoning_content": "hm", "reasoning": "hm"}),
            json!({"content": "Yes"}),
            json!({"tool_calls": [{"index": 0, "id": id, "type": "function",
                                   "function": {"name": "f", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
            json!({}),
        ]
    );
    let finish = events
        .iter()
        .rev()
        .find_map(|event| event["choices"].get(0).cloned());
    assert_eq!(finish.unwrap()["finish_reason"], "tool_calls");
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!(
        usage["completion_tokens_details"],
        json!({"reasoning_tokens": 1})
    );
    assert_eq!(events.last(), Some(&json!("[DONE]")));
}

#[tokio::test]
async fn log_probabilities_of_a_parsed_chat_are_those_of_all_its_tokens() {
    let (sender, mut choice) = choice(0);
    choice.parser = Some(parser(false));
    for text in ["<think>a", "b</think>", "c", " "] {
        send(&sender, token(0, text));
    }
    send(&sender, last(1, "d", FinishReason::Length));
    let content = StreamContent {
        logprobs: Some(tokenizer()),
        ..StreamContent::default()
    };
    let (stream, _) = answer(AnswerKind::Chat, vec![choice], content);
    let events = read_all(stream).await;
    let choices: Vec<&Value> = events
        .iter()
        .filter_map(|event| event.get("choices")?.get(0))
        .collect();
    let tokens = choices
        .iter()
        .filter_map(|choice| choice["logprobs"]["content"].as_array());
    assert_eq!(tokens.map(Vec::len).sum::<usize>(), 5);
    let text: String = choices
        .iter()
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "c d");
    assert!(
        choices
            .iter()
            .all(|choice| choice["delta"].get("reasoning").is_none())
    );
    assert_eq!(choices.last().unwrap()["finish_reason"], "length");
}
