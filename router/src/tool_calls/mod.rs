//! Tool calls and reasoning in a model's answer: finds out how the model writes them, and takes them out of its text
//! while the text is generated.

mod format;
mod parser;
mod piece;
mod plan;

pub use format::{
    Arguments, Body, Calls, Channels, Format, Layout, Origin, Reasoning, Regions, Tags,
};
pub use parser::Parser;
pub use piece::Piece;
pub use plan::{Plan, Tool};
