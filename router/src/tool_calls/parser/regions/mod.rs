//! Answers of plain text with marked regions.

mod calls;
mod text;

use super::Calls;
use super::cursor::Marker;
use super::json::JsonCopy;
use super::literal::Literal;
use super::markers::CallMarkers;
use super::tagged::Tagged;
use text::TextSoFar;

use crate::tool_calls::format::Regions;
use crate::tool_calls::piece::{self, Piece};
use crate::tool_calls::plan::Plan;

/// Longest beginning or end of a call, apart from its arguments, that is waited for.
const MAX_UNDECIDED_BYTES: usize = 1 << 20;
/// Beginnings up to this length are tried again with each piece of text.
const SHORT_BYTES: usize = 4096;

/// Parser of one answer.
#[derive(Debug)]
pub struct RegionParser {
    plan: Plan,
    reasoning: Option<ReasoningMarkers>,
    calls: Option<CallMarkers>,
    content_markers: Vec<Marker>,
    /// Markers that end arguments before they are complete.
    stops: Vec<Marker>,
    state: State,
    /// Text that is not parsed yet.
    buffer: String,
    /// White space that is left out if a marker follows.
    space: String,
    /// True if white space at the beginning is left out, except between two texts of the same kind.
    trim: bool,
    content_so_far: TextSoFar,
    reasoning_so_far: TextSoFar,
    begun: Calls,
    /// Identifiers of calls that the model wrote.
    written_ids: Vec<String>,
    /// True inside the brackets of a list of calls.
    in_list: bool,
    /// Length of the buffer at which an undecided beginning is tried again.
    try_again_at: usize,
}

#[derive(Debug)]
struct ReasoningMarkers {
    open: Marker,
    close: Marker,
    anywhere: bool,
}

#[derive(Debug)]
enum State {
    Content,
    Reasoning,
    /// Inside a call's arguments.
    Arguments(Reading),
    /// After the arguments, inside the call's object.
    ObjectEnd(usize),
    /// Before the call's closing marker.
    Close,
    /// After a call: another one, the end of the section, or content.
    AfterCall,
}

/// Arguments that are being read.
#[derive(Debug)]
enum Reading {
    Json(JsonCopy, usize),
    /// The text of a JSON string; `is_empty`: nothing has been read.
    JsonString {
        open_objects: usize,
        is_empty: bool,
    },
    Literal(Literal),
    Tagged(Tagged, Option<usize>),
}

impl RegionParser {
    pub fn new(plan: &Plan, format: &Regions) -> Self {
        let calls = format.calls.as_ref().filter(|_| !plan.tools.is_empty());
        let calls = calls.map(CallMarkers::new);
        let reasoning = format
            .reasoning
            .as_ref()
            .filter(|_| plan.separate_reasoning);
        let reasoning = reasoning.map(|reasoning| ReasoningMarkers {
            open: Marker::new(&reasoning.open),
            close: Marker::new(&reasoning.close),
            anywhere: reasoning.anywhere,
        });
        let begins_in_reasoning = reasoning.is_some() && plan.begins_in_reasoning();
        let stops = calls.as_ref().map(|calls| {
            JsonCopy::stops([
                &calls.close,
                &calls.section_close,
                &calls.section_open,
                &calls.open,
            ])
        });
        let markers = format.content_markers.iter();
        Self {
            plan: plan.clone(),
            reasoning,
            calls,
            content_markers: markers.map(|marker| Marker::new(marker)).collect(),
            stops: stops.unwrap_or_default(),
            state: if begins_in_reasoning {
                State::Reasoning
            } else {
                State::Content
            },
            buffer: String::new(),
            space: String::new(),
            trim: begins_in_reasoning,
            content_so_far: TextSoFar::default(),
            reasoning_so_far: TextSoFar::default(),
            begun: Calls::default(),
            written_ids: Vec::new(),
            in_list: false,
            try_again_at: 0,
        }
    }

    pub fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.buffer.push_str(text);
        if self.buffer.len() >= self.try_again_at {
            while self.step(false, pieces) {}
        }
    }

    pub fn finish(&mut self, pieces: &mut Vec<Piece>) {
        while self.step(true, pieces) {}
        let space = std::mem::take(&mut self.space);
        piece::push(pieces, self.text_piece(space));
    }

    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Handles one part of the buffer; false if more text is needed.
    fn step(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        self.try_again_at = 0;
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.content(end, pieces),
            State::Reasoning => {
                self.state = State::Reasoning;
                self.reasoning(end, pieces)
            }
            State::Arguments(reading) => self.arguments(reading, end, pieces),
            State::ObjectEnd(open_objects) => self.object_end(open_objects, end, pieces),
            State::Close => self.close(end),
            State::AfterCall => self.after_call(end, pieces),
        }
    }

    /// Waits for more text in this state. A long beginning is tried again only when it has grown by a part.
    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        let len = self.buffer.len();
        self.try_again_at = if len < SHORT_BYTES { 0 } else { len + len / 16 };
        false
    }

    fn skip(&mut self, len: usize) {
        self.buffer.drain(..len.min(self.buffer.len()));
    }
}
