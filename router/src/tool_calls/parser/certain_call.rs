//! The beginning of a call whose name is certain.

use super::literal::Literal;

/// A call whose name is certain.
#[derive(Debug)]
pub struct Begin {
    /// Bytes of text up to the arguments.
    pub len: usize,
    pub name: String,
    /// Identifier that the model wrote.
    pub id: Option<String>,
    pub arguments: Start,
}

/// The arguments from their beginning.
#[derive(Debug)]
pub enum Start {
    /// A JSON value follows. `open_objects`: objects around it that must be closed.
    Json {
        open_objects: usize,
    },
    /// The text of a JSON string follows.
    JsonString {
        open_objects: usize,
    },
    /// The arguments stood before the name.
    Complete {
        json: String,
        open_objects: usize,
    },
    Literal(Literal),
    Tagged,
}
