//! Calls inside an answer with marked regions.

use super::super::certain_call::{Begin, Start};
use super::super::cursor::{Cursor, Doubt, Marker, Try};
use super::super::ids;
use super::super::json::{Copied, JsonCopy, StringCopy};
use super::super::literal::Status;
use super::super::markers::{ArgumentMarkers, BodyMarkers, CallMarkers, TagMarkers};
use super::super::object::object_end;
use super::super::tagged::{Surroundings, Tagged};
use super::{MAX_UNDECIDED_BYTES, Reading, RegionParser, State};
use crate::tool_calls::piece::{self, Piece};

impl RegionParser {
    /// Tries to begin a call at a marker of `len` bytes. If none begins, the marker is content.
    pub(super) fn marked_call(&mut self, len: usize, end: bool, pieces: &mut Vec<Piece>) -> bool {
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
    pub(super) fn bare_call(&mut self, end: bool, pieces: &mut Vec<Piece>) -> Option<bool> {
        let is_bare = self.calls.as_ref().is_some_and(|calls| calls.is_bare);
        if !is_bare || self.content_so_far.has_begun() {
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
        // An identifier that the model writes twice would name two calls.
        let own_id = begin
            .id
            .filter(|id| id.len() >= ids::LEN && !self.written_ids.contains(id));
        self.written_ids.extend(own_id.clone());
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
            Start::JsonString { open_objects } => State::Arguments(Reading::JsonString {
                open_objects,
                is_empty: true,
            }),
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

    pub(super) fn arguments(
        &mut self,
        mut reading: Reading,
        end: bool,
        pieces: &mut Vec<Piece>,
    ) -> bool {
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
            Reading::JsonString {
                open_objects,
                is_empty,
            } => {
                let (read, closed) = StringCopy::advance(&self.buffer, end, &mut out);
                *is_empty &= out.is_empty();
                if closed && *is_empty {
                    out.push_str("{}");
                }
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
                let around = Surroundings { tags, close, tool };
                let (read, status) = tagged.advance((&self.buffer, end), around, &mut out);
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

    pub(super) fn object_end(
        &mut self,
        open_objects: usize,
        end: bool,
        _: &mut Vec<Piece>,
    ) -> bool {
        match self.bounded(object_end(&self.buffer, end, open_objects)) {
            Ok(len) => self.skip(len),
            Err(Doubt::More) => return self.wait(State::ObjectEnd(open_objects)),
            // The rest is content.
            Err(Doubt::No) => {}
        }
        self.state = State::Close;
        true
    }

    pub(super) fn close(&mut self, end: bool) -> bool {
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

    pub(super) fn after_call(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
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

fn tags(calls: &CallMarkers) -> Option<(&TagMarkers, &Marker)> {
    match &calls.body {
        BodyMarkers::Named {
            arguments: ArgumentMarkers::Tagged(tags),
            ..
        } => Some((tags, &calls.close)),
        _ => None,
    }
}
