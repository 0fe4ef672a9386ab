//! The blocks of an answer: reasoning, text and calls, in the order in which the model writes them.
//!
//! Only one block is open at a time. A text or a reasoning begins with its first character that is not white space, so
//! that the blank lines around calls and reasoning make no blocks of their own.

use crate::api::openai::response::TokenLogprob;
use crate::tool_calls::Piece;

/// A block of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    Reasoning(String),
    Text {
        text: String,
        /// Log-probabilities of its tokens, when requested.
        logprobs: Vec<TokenLogprob>,
    },
    Call(Call),
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON text, as the model wrote it. It may be invalid, and is incomplete where the answer ends within it.
    pub arguments: String,
}

/// Receiver of the changes that an answer goes through. `at` is the index of the block.
pub trait BlockSink {
    fn begin(&mut self, at: usize, block: &Block);
    /// `text` has been added to `block`. `logprobs` belong to the tokens of a text.
    fn delta(&mut self, at: usize, block: &Block, text: &str, logprobs: &[TokenLogprob]);
    fn end(&mut self, at: usize, block: &Block);
}

/// Receiver for answers that are sent whole.
#[derive(Debug)]
pub struct Unobserved;

impl BlockSink for Unobserved {
    fn begin(&mut self, _at: usize, _block: &Block) {}
    fn delta(&mut self, _at: usize, _block: &Block, _text: &str, _logprobs: &[TokenLogprob]) {}
    fn end(&mut self, _at: usize, _block: &Block) {}
}

/// The blocks of an answer while it is generated.
#[derive(Debug, Default)]
pub struct Blocks {
    done: Vec<Block>,
    open: Option<Block>,
    /// White space that begins a text or a reasoning, while nothing else has followed it.
    held: String,
    /// Kind of the text in `held`.
    held_is_reasoning: bool,
    /// Log-probabilities of tokens whose text has not come yet.
    pending: Vec<TokenLogprob>,
}

impl Blocks {
    /// Adds a piece of the model's answer.
    pub fn push(&mut self, piece: Piece, sink: &mut impl BlockSink) {
        match piece {
            Piece::Content(text) => self.text(&text, false, sink),
            Piece::Reasoning(text) => self.text(&text, true, sink),
            Piece::CallBegin { id, name, .. } => {
                let arguments = String::new();
                self.begin(
                    Block::Call(Call {
                        id,
                        name,
                        arguments,
                    }),
                    sink,
                );
            }
            Piece::CallArguments { json_fragment, .. } => {
                if matches!(self.open, Some(Block::Call(_))) {
                    self.extend(&json_fragment, sink);
                }
            }
            Piece::CallEnd { .. } => {
                if matches!(self.open, Some(Block::Call(_))) {
                    self.close(sink);
                }
            }
        }
    }

    /// Adds the log-probability of a token, before its pieces.
    pub fn push_logprobs(&mut self, logprobs: Vec<TokenLogprob>) {
        self.pending.extend(logprobs);
    }

    /// True if the tokens at present are reasoning.
    pub fn is_reasoning(&self) -> bool {
        match &self.open {
            Some(Block::Reasoning(_)) => true,
            Some(_) => false,
            None => self.held_is_reasoning && !self.held.is_empty(),
        }
    }

    /// Ends the answer.
    pub fn finish(mut self, sink: &mut impl BlockSink) -> Vec<Block> {
        self.close(sink);
        self.done
    }

    fn text(&mut self, text: &str, reasoning: bool, sink: &mut impl BlockSink) {
        let continues = match &self.open {
            Some(Block::Reasoning(_)) => reasoning,
            Some(Block::Text { .. }) => !reasoning,
            Some(Block::Call(_)) | None => false,
        };
        if continues {
            return self.extend(text, sink);
        }
        self.close(sink);
        if self.held_is_reasoning != reasoning {
            self.held.clear();
            self.held_is_reasoning = reasoning;
        }
        if text.trim().is_empty() {
            self.held.push_str(text);
            return;
        }
        let whole = std::mem::take(&mut self.held) + text;
        self.begin(
            match reasoning {
                true => Block::Reasoning(String::new()),
                false => Block::Text {
                    text: String::new(),
                    logprobs: Vec::new(),
                },
            },
            sink,
        );
        self.extend(&whole, sink);
    }

    fn begin(&mut self, block: Block, sink: &mut impl BlockSink) {
        self.close(sink);
        self.held.clear();
        if !matches!(block, Block::Text { .. }) {
            self.pending.clear();
        }
        sink.begin(self.done.len(), &block);
        self.open = Some(block);
    }

    fn extend(&mut self, addition: &str, sink: &mut impl BlockSink) {
        let pending = std::mem::take(&mut self.pending);
        let Some(open) = &mut self.open else {
            return;
        };
        let logprobs = match open {
            Block::Reasoning(text) => {
                text.push_str(addition);
                Vec::new()
            }
            Block::Call(call) => {
                call.arguments.push_str(addition);
                Vec::new()
            }
            Block::Text { text, logprobs } => {
                text.push_str(addition);
                logprobs.extend_from_slice(&pending);
                pending
            }
        };
        if !addition.is_empty() || !logprobs.is_empty() {
            sink.delta(self.done.len(), open, addition, &logprobs);
        }
    }

    fn close(&mut self, sink: &mut impl BlockSink) {
        if let Some(block) = self.open.take() {
            sink.end(self.done.len(), &block);
            self.done.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Vec<String>);

    impl BlockSink for Recorder {
        fn begin(&mut self, at: usize, block: &Block) {
            let kind = match block {
                Block::Reasoning(_) => "reasoning",
                Block::Text { .. } => "text",
                Block::Call(call) => call.name.as_str(),
            };
            self.0.push(format!("begin {at} {kind}"));
        }

        fn delta(&mut self, at: usize, _block: &Block, text: &str, logprobs: &[TokenLogprob]) {
            self.0
                .push(format!("delta {at} {text:?} {}", logprobs.len()));
        }

        fn end(&mut self, at: usize, _block: &Block) {
            self.0.push(format!("end {at}"));
        }
    }

    fn content(text: &str) -> Piece {
        Piece::Content(text.into())
    }

    fn reasoning(text: &str) -> Piece {
        Piece::Reasoning(text.into())
    }

    fn call(name: &str) -> [Piece; 3] {
        [
            Piece::CallBegin {
                index: 0,
                id: format!("id-{name}"),
                name: name.into(),
            },
            Piece::CallArguments {
                index: 0,
                json_fragment: "{}".into(),
            },
            Piece::CallEnd { index: 0 },
        ]
    }

    fn text_block(text: &str) -> Block {
        Block::Text {
            text: text.into(),
            logprobs: Vec::new(),
        }
    }

    fn run(pieces: impl IntoIterator<Item = Piece>) -> (Vec<String>, Vec<Block>) {
        let mut blocks = Blocks::default();
        let mut recorder = Recorder::default();
        for piece in pieces {
            blocks.push(piece, &mut recorder);
        }
        let blocks = blocks.finish(&mut recorder);
        (recorder.0, blocks)
    }

    #[test]
    fn blocks_open_and_close_in_order() {
        let pieces = [
            reasoning("\nHm"),
            reasoning("."),
            content("\n\n"),
            content("Hi"),
        ]
        .into_iter()
        .chain([content("\n")])
        .chain(call("f"))
        .chain([content("\n")])
        .chain(call("g"));
        let (events, blocks) = run(pieces);
        assert_eq!(
            events,
            [
                "begin 0 reasoning",
                "delta 0 \"\\nHm\" 0",
                "delta 0 \".\" 0",
                "end 0",
                "begin 1 text",
                "delta 1 \"\\n\\nHi\" 0",
                "delta 1 \"\\n\" 0",
                "end 1",
                "begin 2 f",
                "delta 2 \"{}\" 0",
                "end 2",
                "begin 3 g",
                "delta 3 \"{}\" 0",
                "end 3",
            ]
        );
        assert_eq!(blocks.len(), 4);
        assert_eq!(blocks[0], Block::Reasoning("\nHm.".into()));
        assert_eq!(blocks[1], text_block("\n\nHi\n"));
    }

    #[test]
    fn white_space_alone_makes_no_block() {
        assert_eq!(run([content(" \n"), reasoning("\n"), content("\n")]).1, []);
        assert_eq!(run([content(" "), content(" a")]).1, [text_block("  a")]);
    }

    #[test]
    fn an_answer_that_ends_in_a_call_keeps_what_it_wrote() {
        let (events, blocks) = run(call("f").into_iter().take(2));
        assert_eq!(events.last().map(String::as_str), Some("end 0"));
        let Block::Call(call) = &blocks[0] else {
            panic!("a call");
        };
        assert_eq!((call.id.as_str(), call.arguments.as_str()), ("id-f", "{}"));
    }

    #[test]
    fn log_probabilities_go_with_the_text_of_their_tokens() {
        let logprob = |token: &str| TokenLogprob {
            token: token.into(),
            logprob: -1.0,
            bytes: token.as_bytes().to_vec(),
            top_logprobs: Vec::new(),
        };
        let mut blocks = Blocks::default();
        let mut recorder = Recorder::default();
        blocks.push_logprobs(vec![logprob("think")]);
        blocks.push(reasoning("think"), &mut recorder);
        assert!(blocks.is_reasoning());
        blocks.push_logprobs(vec![logprob("h")]);
        blocks.push_logprobs(vec![logprob("i")]);
        blocks.push(content("hi"), &mut recorder);
        assert!(!blocks.is_reasoning());
        let done = blocks.finish(&mut recorder);
        assert_eq!(recorder.0[4], "delta 1 \"hi\" 2");
        let Block::Text { logprobs, .. } = &done[1] else {
            panic!("a text");
        };
        let tokens: Vec<_> = logprobs.iter().map(|one| one.token.as_str()).collect();
        assert_eq!(tokens, ["h", "i"]);
    }
}
