//! Answers of plain text with marked regions.

use super::begin::{ArgumentMarkers, Begin, BodyMarkers, CallMarkers, Start, object_end};
use super::cursor::{Cursor, Doubt, Found, Marker, Try, find};
use super::json::{Copied, JsonCopy, StringCopy};
use super::literal::{Literal, Status};
use super::tagged::Tagged;
use super::{Calls, ids};
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
    /// White space around the markers since the last content.
    gap: String,
    /// True if the answer has reasoning.
    has_reasoning: bool,
    /// True if the answer has content that is no white space.
    has_content: bool,
    begun: Calls,
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
    JsonString(usize),
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
            gap: String::new(),
            has_reasoning: false,
            has_content: false,
            begun: Calls::default(),
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

    fn text_piece(&self, text: String) -> Piece {
        match self.state {
            State::Reasoning => Piece::Reasoning(text),
            _ => Piece::Content(text),
        }
    }

    /// Passes the first `len` bytes of the buffer on as text. White space at its end waits.
    fn pass(&mut self, len: usize, pieces: &mut Vec<Piece>) {
        let rest = self.buffer.split_off(len.min(self.buffer.len()));
        let text = std::mem::replace(&mut self.buffer, rest);
        let mut text = text.as_str();
        let in_reasoning = matches!(self.state, State::Reasoning);
        let mut shown = String::new();
        if self.trim {
            let trimmed = text.trim_start();
            let space = text.get(..text.len() - trimmed.len()).unwrap_or_default();
            self.gap.push_str(space);
            text = trimmed;
            if text.is_empty() {
                return;
            }
            self.trim = false;
            shown = self.gap_before_text(in_reasoning);
        }
        let body = text.trim_end();
        if body.is_empty() {
            self.space.push_str(text);
            return;
        }
        shown.push_str(&std::mem::take(&mut self.space));
        shown.push_str(body);
        self.space
            .push_str(text.get(body.len()..).unwrap_or_default());
        self.has_content |= !in_reasoning;
        self.has_reasoning |= in_reasoning;
        piece::push(pieces, self.text_piece(shown));
    }

    /// White space between this text and an earlier one of its kind, so that their words stay apart.
    fn gap_before_text(&mut self, in_reasoning: bool) -> String {
        let gap = std::mem::take(&mut self.gap);
        let goes_on = match in_reasoning {
            true => self.has_reasoning,
            false => self.has_content,
        };
        match (goes_on, gap.is_empty()) {
            (false, _) => String::new(),
            (true, true) => "\n".into(),
            (true, false) => gap,
        }
    }

    /// Holds the white space before and after a marker back.
    fn at_marker(&mut self) {
        self.gap.push_str(&std::mem::take(&mut self.space));
        self.trim = true;
    }

    fn content(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        if self.buffer.is_empty() {
            return false;
        }
        if let Some(begun) = self.bare_call(end, pieces) {
            return begun;
        }
        let mut markers: Vec<&Marker> = Vec::new();
        let may_reason = self
            .reasoning
            .as_ref()
            .filter(|reasoning| reasoning.anywhere || !self.has_content);
        let nowhere = Marker::default();
        markers.push(may_reason.map_or(&nowhere, |reasoning| &reasoning.open));
        if let Some(calls) = self.calls.as_ref().filter(|calls| !calls.is_bare) {
            markers.extend(calls.openings());
        }
        let first_content_marker = markers.len();
        markers.extend(&self.content_markers);
        match find(&self.buffer, &markers, end) {
            Found::Clear(0) => false,
            Found::Clear(len) => {
                self.pass(len, pieces);
                end
            }
            Found::At { start, .. } if start > 0 => {
                self.pass(start, pieces);
                true
            }
            Found::At { len, index, .. } => {
                if index == 0 && may_reason.is_some() {
                    self.skip(len);
                    self.at_marker();
                    self.state = State::Reasoning;
                    true
                } else if index >= first_content_marker {
                    self.skip(len);
                    self.at_marker();
                    true
                } else {
                    self.marked_call(len, end, pieces)
                }
            }
        }
    }

    /// Tries to begin a call at a marker of `len` bytes. If none begins, the marker is content.
    fn marked_call(&mut self, len: usize, end: bool, pieces: &mut Vec<Piece>) -> bool {
        match self.first_call(end) {
            Ok((begin, in_list)) => {
                self.in_list = in_list;
                self.begin(begin, pieces);
                true
            }
            Err(Doubt::More) => self.wait(State::Content),
            Err(Doubt::No) => {
                self.pass(len, pieces);
                true
            }
        }
    }

    fn first_call(&self, end: bool) -> Try<(Begin, bool)> {
        let calls = self.calls.as_ref().ok_or(Doubt::No)?;
        self.bounded(calls.first(&self.buffer, end, &self.plan))
    }

    /// Gives up what is undecided for too long.
    fn bounded<T>(&self, result: Try<T>) -> Try<T> {
        match result {
            Err(Doubt::More) if self.buffer.len() > MAX_UNDECIDED_BYTES => Err(Doubt::No),
            result => result,
        }
    }

    /// Tries to begin a call that no marker tells of, at the beginning of the content. `None`: there is none.
    fn bare_call(&mut self, end: bool, pieces: &mut Vec<Piece>) -> Option<bool> {
        let is_bare = self.calls.as_ref().is_some_and(|calls| calls.is_bare);
        if !is_bare || self.has_content {
            return None;
        }
        if self.buffer.trim_start().is_empty() && !end {
            return Some(false);
        }
        match self.first_call(end) {
            Ok((begin, in_list)) => {
                self.in_list = in_list;
                self.begin(begin, pieces);
                Some(true)
            }
            Err(Doubt::More) => Some(self.wait(State::Content)),
            Err(Doubt::No) => None,
        }
    }

    fn begin(&mut self, begin: Begin, pieces: &mut Vec<Piece>) {
        self.skip(begin.len);
        self.at_marker();
        let index = self.begun.begin();
        let own_id = begin.id.filter(|id| id.len() >= ids::LEN);
        let tool = self
            .plan
            .tools
            .iter()
            .position(|tool| tool.name == begin.name);
        piece::push(
            pieces,
            Piece::CallBegin {
                index,
                id: own_id.unwrap_or_else(ids::random),
                name: begin.name,
            },
        );
        self.state = match begin.arguments {
            Start::Json { open_objects } => {
                State::Arguments(Reading::Json(JsonCopy::default(), open_objects))
            }
            Start::JsonString { open_objects } => {
                State::Arguments(Reading::JsonString(open_objects))
            }
            Start::Complete { json, open_objects } => {
                self.argue(json, pieces);
                self.end_call(pieces);
                after_arguments(open_objects)
            }
            Start::Literal(literal) => {
                self.argue("{".into(), pieces);
                State::Arguments(Reading::Literal(literal))
            }
            Start::Tagged => State::Arguments(Reading::Tagged(Tagged::new(), tool)),
        };
    }

    fn argue(&self, json_fragment: String, pieces: &mut Vec<Piece>) {
        let index = self.begun.last();
        piece::push(
            pieces,
            Piece::CallArguments {
                index,
                json_fragment,
            },
        );
    }

    fn end_call(&self, pieces: &mut Vec<Piece>) {
        let index = self.begun.last();
        piece::push(pieces, Piece::CallEnd { index });
    }

    fn arguments(&mut self, mut reading: Reading, end: bool, pieces: &mut Vec<Piece>) -> bool {
        let mut out = String::new();
        let (read, next) = match &mut reading {
            Reading::Json(copy, open_objects) => {
                let open_objects = *open_objects;
                let (read, next) = match copy.advance(&self.buffer, &self.stops, end) {
                    Copied::Going(read) => (read, None),
                    Copied::Done(read) => (read, Some(after_arguments(open_objects))),
                    Copied::Stopped(read) => (read, Some(State::Close)),
                };
                out.push_str(self.buffer.get(..read).unwrap_or_default());
                (read, next)
            }
            Reading::JsonString(open_objects) => {
                let (read, closed) = StringCopy::advance(&self.buffer, end, &mut out);
                (read, closed.then(|| after_arguments(*open_objects)))
            }
            Reading::Literal(literal) => {
                let (read, status) = literal.advance(&self.buffer, end, &mut out);
                (read, (status != Status::Going).then_some(State::Close))
            }
            Reading::Tagged(tagged, tool) => {
                let tool = tool.and_then(|tool| self.plan.tools.get(tool));
                let Some((tags, close)) = self.calls.as_ref().and_then(tags) else {
                    return false;
                };
                let text = (self.buffer.as_str(), end);
                let (read, status) = tagged.advance(text, tags, close, tool, &mut out);
                (read, (status != Status::Going).then_some(State::Close))
            }
        };
        self.skip(read);
        self.argue(out, pieces);
        match next {
            Some(next) => {
                self.end_call(pieces);
                self.state = next;
                true
            }
            None => {
                self.state = State::Arguments(reading);
                false
            }
        }
    }

    fn object_end(&mut self, open_objects: usize, end: bool, _: &mut Vec<Piece>) -> bool {
        match self.bounded(object_end(&self.buffer, end, open_objects)) {
            Ok(len) => self.skip(len),
            Err(Doubt::More) => return self.wait(State::ObjectEnd(open_objects)),
            // The rest is content.
            Err(Doubt::No) => {}
        }
        self.state = State::Close;
        true
    }

    fn close(&mut self, end: bool) -> bool {
        let text = self.buffer.trim_start();
        let space = self.buffer.len() - text.len();
        let close = self.calls.as_ref().map(|calls| &calls.close);
        match close.filter(|close| !close.is_empty()) {
            None => {}
            Some(close) => match close.fit_some(text, end) {
                Ok(len) => self.skip(space + len),
                Err(Doubt::More) => return self.wait(State::Close),
                Err(Doubt::No) => {}
            },
        }
        self.state = State::AfterCall;
        true
    }

    fn after_call(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        match self.next_call(end) {
            Ok(Next::Call(begin)) => {
                self.begin(begin, pieces);
                true
            }
            Ok(Next::End { len, closed_list }) => {
                self.skip(len);
                if closed_list {
                    // The marker after the list.
                    self.in_list = false;
                    self.state = State::AfterCall;
                } else {
                    self.at_marker();
                    self.state = State::Content;
                }
                true
            }
            Err(Doubt::More) => self.wait(State::AfterCall),
            Err(Doubt::No) => {
                self.at_marker();
                self.state = State::Content;
                !self.buffer.is_empty()
            }
        }
    }

    fn next_call(&self, end: bool) -> Try<Next> {
        let calls = self.calls.as_ref().ok_or(Doubt::No)?;
        let mut cursor = Cursor::new(&self.buffer, end);
        cursor.space();
        cursor.peek()?;
        if self.in_list {
            if cursor.take(']')? {
                let (len, closed_list) = (cursor.at, true);
                return Ok(Next::End { len, closed_list });
            }
            if cursor.take(',')? {
                cursor.space();
            }
            return self.bounded(calls.call(cursor, &self.plan)).map(Next::Call);
        }
        if !calls.section_close.is_empty() {
            match calls.section_close.fit_some(cursor.rest(), end) {
                Ok(len) => {
                    let (len, closed_list) = (cursor.at + len, false);
                    return Ok(Next::End { len, closed_list });
                }
                Err(Doubt::More) => return Err(Doubt::More),
                Err(Doubt::No) => {}
            }
        }
        if calls.list {
            return Err(Doubt::No);
        }
        if !calls.separator.is_empty() && cursor.accept(&calls.separator)? {
            cursor.space();
        }
        self.bounded(calls.call(cursor, &self.plan)).map(Next::Call)
    }

    fn reasoning(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        let Some(reasoning) = &self.reasoning else {
            self.state = State::Content;
            return true;
        };
        match find(&self.buffer, &[&reasoning.close], end) {
            Found::At { start, .. } if start > 0 => {
                self.pass(start, pieces);
                true
            }
            Found::At { len, .. } => {
                self.skip(len);
                self.at_marker();
                self.state = State::Content;
                true
            }
            Found::Clear(len) => {
                self.pass(len, pieces);
                false
            }
        }
    }
}

/// Text after a call.
enum Next {
    Call(Begin),
    /// The end of the section, in `len` bytes; `closed_list`: only of its list.
    End {
        len: usize,
        closed_list: bool,
    },
}

fn after_arguments(open_objects: usize) -> State {
    match open_objects {
        0 => State::Close,
        open => State::ObjectEnd(open),
    }
}

fn tags(calls: &CallMarkers) -> Option<(&super::begin::TagMarkers, &Marker)> {
    match &calls.body {
        BodyMarkers::Named {
            arguments: ArgumentMarkers::Tagged(tags),
            ..
        } => Some((tags, &calls.close)),
        _ => None,
    }
}
