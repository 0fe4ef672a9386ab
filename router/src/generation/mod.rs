//! A generation request of any API: its parameters, their bounds and defaults, and its validation.

pub mod best_of;
pub mod bounds;
pub mod defaults;
pub mod parameters;
pub mod table;
pub mod token_runs;
pub mod validation;
pub mod values;
pub mod watermark;
