//! Takes an answer apart while it is generated.
//!
//! Text is passed on as soon as it is certain what it is. What a piece of text becomes never depends on how the answer
//! was cut. Text that does not fit the format is content.

mod begin;
mod certain_call;
mod channels;
mod coerce;
mod cursor;
mod ids;
mod json;
mod literal;
mod markers;
mod object;
mod quoted;
mod regions;
mod tagged;

use channels::ChannelParser;
use regions::RegionParser;

use super::format::Layout;
use super::piece::Piece;
use super::plan::Plan;

/// Streaming parser of one answer.
#[derive(Debug)]
pub struct Parser {
    kind: Kind,
    /// True if calls after the first are left out.
    single_call: bool,
}

#[derive(Debug)]
enum Kind {
    Regions(Box<RegionParser>),
    Channels(Box<ChannelParser>),
}

/// Number of calls that have begun.
#[derive(Debug, Clone, Copy, Default)]
struct Calls(usize);

impl Calls {
    /// Index of a new call.
    fn begin(&mut self) -> usize {
        self.0 += 1;
        self.last()
    }

    /// Index of the last call.
    fn last(self) -> usize {
        self.0.saturating_sub(1)
    }
}

impl Plan {
    /// A parser for one answer.
    pub fn parser(&self) -> Parser {
        Parser::new(self)
    }
}

impl Parser {
    pub fn new(plan: &Plan) -> Self {
        let kind = match &plan.format.layout {
            Layout::Regions(format) => Kind::Regions(Box::new(RegionParser::new(plan, format))),
            Layout::Channels(format) => Kind::Channels(Box::new(ChannelParser::new(plan, format))),
        };
        Self {
            kind,
            single_call: plan.single_call,
        }
    }

    /// Adds text of the answer. Returns the pieces that became certain with it.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match &mut self.kind {
            Kind::Regions(parser) => parser.push(text, &mut pieces),
            Kind::Channels(parser) => parser.push(text, &mut pieces),
        }
        self.kept(pieces)
    }

    /// Ends the answer. Returns its last pieces.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match &mut self.kind {
            Kind::Regions(parser) => parser.finish(&mut pieces),
            Kind::Channels(parser) => parser.finish(&mut pieces),
        }
        self.kept(pieces)
    }

    /// True inside reasoning.
    pub fn is_reasoning(&self) -> bool {
        match &self.kind {
            Kind::Regions(parser) => parser.is_reasoning(),
            Kind::Channels(parser) => parser.is_reasoning(),
        }
    }

    fn kept(&self, mut pieces: Vec<Piece>) -> Vec<Piece> {
        if self.single_call {
            pieces.retain(|piece| match piece {
                Piece::Content(_) | Piece::Reasoning(_) => true,
                Piece::CallBegin { index, .. }
                | Piece::CallArguments { index, .. }
                | Piece::CallEnd { index } => *index == 0,
            });
        }
        pieces
    }
}
