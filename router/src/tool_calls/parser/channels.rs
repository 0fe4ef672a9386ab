//! Answers that consist of messages with headers.

use std::sync::Arc;

use super::cursor::{Found, Marker, find};
use super::{Calls, ids};
use crate::tool_calls::format::Channels;
use crate::tool_calls::piece::{self, Piece};
use crate::tool_calls::plan::{Plan, Tool};

/// Parser of one answer.
#[derive(Debug)]
pub struct ChannelParser {
    format: Channels,
    message: Marker,
    /// Markers that end a message, and those that begin one.
    ends: Vec<Marker>,
    /// Tools that may be called.
    tools: Arc<[Tool]>,
    reasoning: bool,
    state: State,
    /// Text that is not parsed yet.
    buffer: String,
    calls_begun: Calls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the beginning of a header, or of text without one.
    Start,
    Header,
    Content,
    Reasoning,
    Call(usize),
}

impl ChannelParser {
    pub fn new(plan: &Plan, format: &Channels) -> Self {
        let begins = [&format.start, &format.channel];
        let ends = format.ends.iter().chain(begins);
        let mut parser = Self {
            format: format.clone(),
            message: Marker::new(&format.message),
            ends: ends.map(|marker| Marker::new(marker)).collect(),
            tools: Arc::clone(&plan.tools),
            reasoning: plan.separate_reasoning,
            state: State::Start,
            buffer: String::new(),
            calls_begun: Calls::default(),
        };
        // The prompt may end inside a message that the answer continues.
        let mut ignored = Vec::new();
        if let Some(start) = plan.prefix.rfind(&format.channel) {
            parser.buffer = plan.prefix.get(start..).unwrap_or_default().to_owned();
            parser.run(false, &mut ignored);
        }
        parser
    }

    pub fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.buffer.push_str(text);
        self.run(false, pieces);
    }

    pub fn finish(&mut self, pieces: &mut Vec<Piece>) {
        self.run(true, pieces);
    }

    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    fn run(&mut self, end: bool, pieces: &mut Vec<Piece>) {
        while self.step(end, pieces) {}
    }

    /// Takes the first `len` bytes of the buffer.
    fn take(&mut self, len: usize) -> String {
        let rest = self.buffer.split_off(len.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Handles one part of the buffer; false if more text is needed.
    fn step(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.start(end),
            State::Header => self.header(end, pieces),
            State::Content | State::Reasoning | State::Call(_) => self.text(end, pieces),
        }
    }

    fn start(&mut self, end: bool) -> bool {
        let text = self.buffer.trim_start();
        if text.is_empty() {
            return false;
        }
        let recipient = self.format.recipient.trim();
        let begins = [&self.format.start, &self.format.channel];
        let opens = begins
            .iter()
            .map(|marker| marker.as_str())
            .chain([recipient]);
        let mut may_open = false;
        for open in opens {
            if text.starts_with(open) {
                self.state = State::Header;
                return true;
            }
            may_open |= !end && open.starts_with(text);
        }
        if may_open {
            return false;
        }
        self.state = State::Content;
        true
    }

    fn header(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        let Found::At { start, len, .. } = find(&self.buffer, &[&self.message], end) else {
            if end {
                let text = self.take(self.buffer.len());
                piece::push(pieces, Piece::Content(text));
            }
            return false;
        };
        let header = self.take(start + len);
        let header = header.get(..start).unwrap_or_default();
        let channel = header
            .rsplit(self.format.channel.as_str())
            .next()
            .and_then(|rest| rest.split([' ', '<']).next())
            .unwrap_or_default();
        let recipient = header
            .rsplit_once(self.format.recipient.trim())
            .and_then(|(_, rest)| rest.split([' ', '<', '\n']).next());
        let name = recipient.and_then(|name| self.called(name));
        self.state = match name {
            Some(name) => {
                let index = self.calls_begun.begin();
                piece::push(
                    pieces,
                    Piece::CallBegin {
                        index,
                        id: ids::random(),
                        name: name.to_owned(),
                    },
                );
                State::Call(index)
            }
            _ if channel == self.format.reasoning && self.reasoning => State::Reasoning,
            _ => State::Content,
        };
        true
    }

    /// The function that a message to `recipient` calls. A model may leave the prefix of a known name out.
    fn called<'r>(&self, recipient: &'r str) -> Option<&'r str> {
        if self.tools.is_empty() {
            return None;
        }
        let prefixed = recipient.strip_prefix(self.format.name_prefix.as_str());
        let is_known = self.tools.iter().any(|tool| tool.name == recipient);
        prefixed
            .or(is_known.then_some(recipient))
            .filter(|name| !name.is_empty())
    }

    fn text(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        let markers: Vec<&Marker> = self.ends.iter().collect();
        let (len, marker) = match find(&self.buffer, &markers, end) {
            Found::At { start, len, index } => (start, Some((len, index))),
            Found::Clear(clear) => (clear, None),
        };
        let text = self.take(len);
        let piece = match self.state {
            State::Reasoning => Piece::Reasoning(text),
            State::Call(index) => Piece::CallArguments {
                index,
                json_fragment: text,
            },
            _ => Piece::Content(text),
        };
        piece::push(pieces, piece);
        let Some((len, index)) = marker else {
            return false;
        };
        if let State::Call(index) = self.state {
            piece::push(pieces, Piece::CallEnd { index });
        }
        // A marker that begins the next header belongs to it.
        if index < self.format.ends.len() {
            self.take(len);
            self.state = State::Start;
        } else {
            self.state = State::Header;
        }
        true
    }
}
