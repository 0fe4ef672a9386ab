//! Encodes the chunks of a stream by hand. The parts that all chunks of an answer share are encoded once, so that a
//! token costs three copies.

use serde::Serialize;

use super::response::{Delta, OpenAiFinishReason, StopReason, Usage};
use super::returned_tokens::ReturnedFields;
use crate::http::sse::json_string;

/// Fields that all chunks of an answer share.
#[derive(Debug, Clone)]
pub struct Identity {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Id of the served model.
    pub model: String,
    pub system_fingerprint: String,
}

/// Kind of an answer: the two generating routes have chunks of different forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    Chat,
    Completion,
}

impl AnswerKind {
    /// Value of a chunk's field `object`.
    fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Completion => "text_completion",
        }
    }

    /// JSON between a choice's index and its text, in the first chunk of a choice.
    fn before_first_text(self) -> &'static str {
        match self {
            Self::Chat => r#""delta":{"role":"assistant","content":"#,
            Self::Completion => r#""text":"#,
        }
    }

    /// JSON between a choice's index and its text, in all further chunks.
    fn before_text(self) -> &'static str {
        match self {
            Self::Chat => r#""delta":{"content":"#,
            Self::Completion => r#""text":"#,
        }
    }

    fn after_text(self) -> &'static str {
        match self {
            Self::Chat => "}",
            Self::Completion => "",
        }
    }
}

/// Fields of a chunk besides its text.
#[derive(Debug)]
pub struct ChunkDetails<'a, L> {
    /// True if this is the choice's first chunk.
    pub first: bool,
    pub logprobs: Option<&'a L>,
    pub finish_reason: Option<OpenAiFinishReason>,
    pub stop_reason: Option<StopReason>,
    /// Usage so far, when every chunk reports it.
    pub usage: Option<Usage>,
    /// Ids of the tokens whose text this is, and of those before it that have none.
    pub returned: Option<ReturnedFields>,
}

/// Encodes the chunks of one answer as server-sent events.
#[derive(Debug)]
pub struct ChunkEncoder {
    kind: AnswerKind,
    /// Beginning of every chunk, through the `[` of `choices`.
    head: Vec<u8>,
    /// Beginning of a chunk that only adds text, for each choice; not for its first chunk.
    plain_heads: Vec<Box<[u8]>>,
    /// End of a chunk that only adds text.
    plain_tail: Vec<u8>,
    /// True if chunks without usage say `"usage":null`.
    null_usage: bool,
}

impl ChunkEncoder {
    /// An encoder for one answer. `null_usage`: only the last chunk has the usage, and all others say `null`.
    pub fn new(kind: AnswerKind, identity: &Identity, num_choices: u32, null_usage: bool) -> Self {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(b"data: {\"id\":");
        json_string(&mut head, &identity.id);
        head.extend_from_slice(b",\"object\":\"");
        head.extend_from_slice(kind.object().as_bytes());
        head.extend_from_slice(format!("\",\"created\":{}", identity.created).as_bytes());
        head.extend_from_slice(b",\"model\":");
        json_string(&mut head, &identity.model);
        head.extend_from_slice(b",\"system_fingerprint\":");
        json_string(&mut head, &identity.system_fingerprint);
        head.extend_from_slice(b",\"choices\":[");
        let plain_heads = (0..num_choices)
            .map(|index| {
                let mut plain = head.clone();
                plain.extend_from_slice(format!("{{\"index\":{index},").as_bytes());
                plain.extend_from_slice(kind.before_text().as_bytes());
                plain.into_boxed_slice()
            })
            .collect();
        let usage = if null_usage { r#","usage":null"# } else { "" };
        let plain_tail = format!(
            "{}{}{usage}}}\n\n",
            kind.after_text(),
            r#","logprobs":null,"finish_reason":null}]"#
        );
        Self {
            kind,
            head,
            plain_heads,
            plain_tail: plain_tail.into_bytes(),
            null_usage,
        }
    }

    /// Writes a chunk that only adds text. It must not be the first of its choice.
    pub fn text(&self, out: &mut Vec<u8>, index: u32, text: &str) {
        if let Some(head) = self.plain_heads.get(index as usize) {
            out.extend_from_slice(head);
            json_string(out, text);
            out.extend_from_slice(&self.plain_tail);
        }
    }

    /// Writes any chunk of a choice.
    pub fn detailed<L: Serialize>(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        text: &str,
        details: &ChunkDetails<'_, L>,
    ) -> Result<(), serde_json::Error> {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(format!("{{\"index\":{index},").as_bytes());
        let before = if details.first {
            self.kind.before_first_text()
        } else {
            self.kind.before_text()
        };
        out.extend_from_slice(before.as_bytes());
        json_string(out, text);
        out.extend_from_slice(self.kind.after_text().as_bytes());
        self.end_choice(out, details)
    }

    fn end_choice<L: Serialize>(
        &self,
        out: &mut Vec<u8>,
        details: &ChunkDetails<'_, L>,
    ) -> Result<(), serde_json::Error> {
        out.extend_from_slice(b",\"logprobs\":");
        serde_json::to_writer(&mut *out, &details.logprobs)?;
        out.extend_from_slice(b",\"finish_reason\":");
        serde_json::to_writer(&mut *out, &details.finish_reason)?;
        if let Some(reason) = &details.stop_reason {
            out.extend_from_slice(b",\"stop_reason\":");
            serde_json::to_writer(&mut *out, reason)?;
        }
        if let Some(returned) = &details.returned {
            out.push(b',');
            let opening_brace = out.len();
            serde_json::to_writer(&mut *out, returned)?;
            // The fields stand among those of the choice, whose own brace closes below.
            out.remove(opening_brace);
            out.pop();
        }
        out.extend_from_slice(b"}]");
        self.end(out, details.usage)
    }

    /// Writes a chunk of a parsed chat. The first of its choice names the role.
    pub fn delta<L: Serialize>(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        mut delta: Delta,
        details: &ChunkDetails<'_, L>,
    ) -> Result<(), serde_json::Error> {
        if details.first {
            delta.role = Some("assistant".into());
        }
        out.extend_from_slice(&self.head);
        out.extend_from_slice(format!("{{\"index\":{index},\"delta\":").as_bytes());
        serde_json::to_writer(&mut *out, &delta)?;
        self.end_choice(out, details)
    }

    /// Writes the chunk without choices that reports the usage of the whole answer.
    pub fn usage(&self, out: &mut Vec<u8>, usage: Usage) -> Result<(), serde_json::Error> {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"]");
        self.end(out, Some(usage))
    }

    fn end(&self, out: &mut Vec<u8>, usage: Option<Usage>) -> Result<(), serde_json::Error> {
        if usage.is_some() || self.null_usage {
            out.extend_from_slice(b",\"usage\":");
            serde_json::to_writer(&mut *out, &usage)?;
        }
        out.extend_from_slice(b"}\n\n");
        Ok(())
    }
}

/// The event after the last chunk.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::openai::response::{
        ChatCompletionChunk, ChatLogprobs, CompletionChunk, TokenLogprob,
    };

    fn encoder(kind: AnswerKind, null_usage: bool) -> ChunkEncoder {
        let identity = Identity {
            id: "chatcmpl-1".into(),
            created: 1_767_225_600,
            model: "a \"model\"".into(),
            system_fingerprint: "1.0".into(),
        };
        ChunkEncoder::new(kind, &identity, 2, null_usage)
    }

    fn parse<T: DeserializeOwned>(event: &[u8]) -> T {
        let text = std::str::from_utf8(event).unwrap();
        let json = text
            .strip_prefix("data: ")
            .unwrap()
            .strip_suffix("\n\n")
            .unwrap();
        assert!(!json.contains('\n'), "an event is one line");
        serde_json::from_str(json).unwrap()
    }

    const NOTHING: ChunkDetails<'static, ()> = ChunkDetails {
        first: false,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        usage: None,
        returned: None,
    };

    #[test]
    fn text_is_escaped_and_parses_back() {
        let encoder = encoder(AnswerKind::Chat, false);
        for text in [
            "",
            " Paris",
            "\"\\\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}",
            "é 😀 \u{2028}",
            "</script>",
        ] {
            let mut out = Vec::new();
            encoder.text(&mut out, 1, text);
            let chunk: ChatCompletionChunk = parse(&out);
            assert_eq!(chunk.choices[0].delta.content.as_deref(), Some(text));
            assert_eq!(chunk.choices[0].delta.role, None);
            assert_eq!(chunk.choices[0].index, 1);
            assert_eq!(chunk.choices[0].finish_reason, None);
            assert_eq!(chunk.model, "a \"model\"");
            assert_eq!(chunk.object, "chat.completion.chunk");
        }
    }

    #[test]
    fn the_fast_path_writes_the_same_as_the_general_one() {
        for kind in [AnswerKind::Chat, AnswerKind::Completion] {
            for null_usage in [false, true] {
                let encoder = encoder(kind, null_usage);
                let (mut quick, mut general) = (Vec::new(), Vec::new());
                encoder.text(&mut quick, 1, "a\nb");
                encoder.detailed(&mut general, 1, "a\nb", &NOTHING).unwrap();
                assert_eq!(quick, general);
            }
        }
    }

    #[test]
    fn first_and_last_chunks_of_a_chat() {
        let encoder = encoder(AnswerKind::Chat, true);
        let mut out = Vec::new();
        let logprobs = ChatLogprobs {
            content: vec![TokenLogprob {
                token: "a".into(),
                logprob: -0.1,
                bytes: vec![97],
                top_logprobs: Vec::new(),
            }],
        };
        let first = ChunkDetails {
            first: true,
            logprobs: Some(&logprobs),
            finish_reason: None,
            stop_reason: None,
            usage: None,
            returned: None,
        };
        encoder.detailed(&mut out, 0, "a", &first).unwrap();
        let json: Value = parse(&out);
        assert_eq!(
            json["choices"][0],
            json!({
                "index": 0,
                "delta": {"role": "assistant", "content": "a"},
                "logprobs": {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]},
                "finish_reason": null,
            })
        );
        assert_eq!(json["usage"], Value::Null);
        assert!(json.as_object().unwrap().contains_key("usage"));

        out.clear();
        let last = ChunkDetails {
            finish_reason: Some(OpenAiFinishReason::Stop),
            stop_reason: Some(StopReason::Text("\n".into())),
            usage: Some(Usage::new(3, 4)),
            ..NOTHING
        };
        encoder.detailed(&mut out, 0, "", &last).unwrap();
        let json: Value = parse(&out);
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
        assert_eq!(json["choices"][0]["stop_reason"], "\n");
        assert_eq!(json["choices"][0]["delta"], json!({"content": ""}));
        assert_eq!(json["usage"]["total_tokens"], 7);
    }

    #[test]
    fn chunks_of_a_completion_and_its_usage() {
        let encoder = encoder(AnswerKind::Completion, false);
        let mut out = Vec::new();
        let last = ChunkDetails {
            finish_reason: Some(OpenAiFinishReason::Length),
            stop_reason: None,
            ..NOTHING
        };
        encoder.detailed(&mut out, 1, "end", &last).unwrap();
        let chunk: CompletionChunk = parse(&out);
        assert_eq!(chunk.object, "text_completion");
        assert_eq!(chunk.choices[0].text, "end");
        assert_eq!(
            chunk.choices[0].finish_reason,
            Some(OpenAiFinishReason::Length)
        );
        assert_eq!(chunk.usage, None);

        out.clear();
        encoder.usage(&mut out, Usage::new(1, 2)).unwrap();
        let chunk: CompletionChunk = parse(&out);
        assert!(chunk.choices.is_empty());
        assert_eq!(chunk.usage, Some(Usage::new(1, 2)));
    }
}
