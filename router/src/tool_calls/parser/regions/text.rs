//! Texts of an answer with marked regions, and the white space around their markers.

use super::super::cursor::{Doubt, Found, Marker, Try, find};
use super::{MAX_UNDECIDED_BYTES, RegionParser, State};
use crate::tool_calls::format::Layout;
use crate::tool_calls::piece::{self, Piece};

/// The part of one kind of text that has been passed on.
#[derive(Debug, Default)]
pub struct TextSoFar {
    /// True if there was text that is no white space.
    begun: bool,
    /// White space around the markers since the last text of this kind.
    gap: String,
    /// Length of the gap at the last marker.
    gap_at_marker: usize,
}

impl TextSoFar {
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// White space before text that follows a marker. Text that goes on keeps all of it, so that it stays as the model
    /// wrote it. Before other text it belongs to the marker, except for the indentation of the first line.
    fn space_before_text(&mut self) -> String {
        let mut gap = std::mem::take(&mut self.gap);
        let at_marker = std::mem::take(&mut self.gap_at_marker);
        if self.begun {
            return gap;
        }
        match gap.rfind('\n') {
            Some(line_end) if line_end >= at_marker => gap.split_off(line_end + 1),
            _ => String::new(),
        }
    }
}

impl RegionParser {
    pub(super) fn text_piece(&self, text: String) -> Piece {
        match self.state {
            State::Reasoning => Piece::Reasoning(text),
            _ => Piece::Content(text),
        }
    }

    fn so_far(&mut self) -> &mut TextSoFar {
        match self.state {
            State::Reasoning => &mut self.reasoning_so_far,
            _ => &mut self.content_so_far,
        }
    }

    /// Passes the first `len` bytes of the buffer on as text. White space at its end waits.
    pub(super) fn pass(&mut self, len: usize, pieces: &mut Vec<Piece>) {
        let rest = self.buffer.split_off(len.min(self.buffer.len()));
        let text = std::mem::replace(&mut self.buffer, rest);
        let mut text = text.as_str();
        let mut shown = String::new();
        if self.trim {
            let trimmed = text.trim_start();
            let space = text.get(..text.len() - trimmed.len()).unwrap_or_default();
            self.so_far().gap.push_str(space);
            text = trimmed;
            if text.is_empty() {
                return;
            }
            self.trim = false;
            shown = self.so_far().space_before_text();
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
        self.so_far().begun = true;
        piece::push(pieces, self.text_piece(shown));
    }

    /// Holds the white space before and after a marker back. Called in the state before the marker.
    pub(super) fn at_marker(&mut self) {
        let space = std::mem::take(&mut self.space);
        self.so_far().gap.push_str(&space);
        for so_far in [&mut self.content_so_far, &mut self.reasoning_so_far] {
            so_far.gap_at_marker = so_far.gap.len();
        }
        self.trim = true;
    }

    pub(super) fn content(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
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
            .filter(|reasoning| reasoning.anywhere || !self.content_so_far.begun);
        let nowhere = Marker::default();
        markers.push(may_reason.map_or(&nowhere, |reasoning| &reasoning.open));
        markers.extend(self.openings());
        let first_content_marker = markers.len();
        markers.extend(&self.content_markers);
        // A model may close a thought that the prompt closed already.
        let nothing_yet =
            !self.content_so_far.begun && !self.reasoning_so_far.begun && self.begun.0 == 0;
        let close = self.reasoning.as_ref().filter(|_| nothing_yet);
        markers.extend(close.map(|reasoning| &reasoning.close));
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

    /// Markers that tell that calls begin.
    fn openings(&self) -> Vec<&Marker> {
        let calls = self.calls.as_ref().filter(|calls| !calls.is_bare);
        calls.map_or_else(Vec::new, |calls| calls.openings())
    }

    pub(super) fn reasoning(&mut self, end: bool, pieces: &mut Vec<Piece>) -> bool {
        let Some(reasoning) = &self.reasoning else {
            self.state = State::Content;
            return true;
        };
        let mut markers = vec![&reasoning.close];
        markers.extend(self.openings());
        match find(&self.buffer, &markers, end) {
            Found::At { start, .. } if start > 0 => {
                self.pass(start, pieces);
                true
            }
            Found::At { len, index: 0, .. } => {
                self.skip(len);
                self.at_marker();
                self.state = State::Content;
                true
            }
            Found::At { len, .. } => match self.calls_end_the_answer(end) {
                Ok(()) => {
                    self.at_marker();
                    self.state = State::Content;
                    true
                }
                Err(Doubt::More) => self.wait(State::Reasoning),
                Err(Doubt::No) => {
                    self.pass(len, pieces);
                    true
                }
            },
            Found::Clear(len) => {
                self.pass(len, pieces);
                false
            }
        }
    }

    /// Tells calls that a model writes without closing its reasoning from those that it only thinks about: nothing but
    /// calls of known tools follows them, up to the end of the answer.
    fn calls_end_the_answer(&self, end: bool) -> Try<()> {
        let Layout::Regions(format) = &self.plan.format.layout else {
            return Err(Doubt::No);
        };
        let close = self.reasoning.as_ref().map(|reasoning| &reasoning.close);
        let closes = close
            .is_some_and(|close| matches!(find(&self.buffer, &[close], end), Found::At { .. }));
        if closes || self.buffer.len() > MAX_UNDECIDED_BYTES {
            return Err(Doubt::No);
        }
        let mut plan = self.plan.clone();
        plan.separate_reasoning = false;
        let mut inner = RegionParser::new(&plan, format);
        let mut pieces = Vec::new();
        inner.push(&self.buffer, &mut pieces);
        if end {
            inner.finish(&mut pieces);
        }
        let mut num_calls = 0;
        for piece in &pieces {
            match piece {
                Piece::CallBegin { name, .. } if plan.tool(name).is_some() => num_calls += 1,
                Piece::CallArguments { .. } | Piece::CallEnd { .. } => {}
                Piece::Content(text) if text.trim().is_empty() => {}
                Piece::CallBegin { .. } | Piece::Content(_) | Piece::Reasoning(_) => {
                    return Err(Doubt::No);
                }
            }
        }
        match (end, num_calls) {
            (false, _) => Err(Doubt::More),
            (true, 0) => Err(Doubt::No),
            (true, _) => Ok(()),
        }
    }
}
