//! Takes an answer apart while it is generated.

use super::piece::{self, Piece};
use super::plan::Plan;

/// Streaming parser of one answer.
#[derive(Debug)]
pub struct Parser {
    plan: Plan,
}

impl Parser {
    pub fn new(plan: &Plan) -> Self {
        Self { plan: plan.clone() }
    }

    /// Adds text of the answer. Returns the pieces that became certain with it.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        piece::push(&mut pieces, Piece::Content(text.to_owned()));
        pieces
    }

    /// Ends the answer. Returns its last pieces.
    pub fn finish(&mut self) -> Vec<Piece> {
        Vec::new()
    }
}
