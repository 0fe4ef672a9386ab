//! Pieces of a parsed answer.

/// A piece of an answer. Pieces come in the order in which the model wrote them; the pieces of an answer do not depend
/// on how its text was cut before it was parsed, except for where texts are cut in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text of the answer itself. Never empty.
    Content(String),
    /// Text of the model's thoughts. Never empty.
    Reasoning(String),
    /// Beginning of a call. Calls are numbered from 0; one ends before the next begins.
    CallBegin {
        index: usize,
        /// Identifier of the call, unique in all answers unless the model wrote its own.
        id: String,
        name: String,
    },
    /// Part of the arguments of the call that began last, as JSON text. Never empty.
    CallArguments { index: usize, json_fragment: String },
    /// End of a call. Missing where the answer ended inside the call.
    CallEnd { index: usize },
}

/// Appends `piece`, joined with the one before where both are text of the same kind.
pub fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), piece) {
        (_, Piece::Content(text) | Piece::Reasoning(text)) if text.is_empty() => {}
        (_, Piece::CallArguments { json_fragment, .. }) if json_fragment.is_empty() => {}
        (Some(Piece::Content(before)), Piece::Content(text))
        | (Some(Piece::Reasoning(before)), Piece::Reasoning(text)) => before.push_str(&text),
        (
            Some(Piece::CallArguments {
                json_fragment: before,
                ..
            }),
            Piece::CallArguments { json_fragment, .. },
        ) => before.push_str(&json_fragment),
        (_, piece) => pieces.push(piece),
    }
}
