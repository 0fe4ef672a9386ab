//! The one home of settings. A flag is one field of a struct in [`flags`]: its name, environment variable, default,
//! bounds and help.
//!
//! The launcher reads the command line ([`parse_command_line`]), refuses wrong values, and passes the router a
//! [`RouterSettings`] and each shard a [`ShardSettings`], both as JSON.

mod cli;
pub mod commands;
pub mod flags;
pub mod generated;
pub mod open_files;
pub mod page;
mod parse;
mod rewrite;
mod router;
mod shard;
pub mod utc;
mod validate;
mod values;

pub use cli::Cli;
pub use flags::{
    Attention, Batching, Device, Dtype, Http, LogLevel, Memory, ModelImpl, ModelSource, Names,
    Processes, Quantize, RequestLimits, Task, Timeouts,
};
pub use parse::{parse_command_line, parse_words, try_parse};
pub use router::{RouterLaunch, RouterSettings, SettingsError};
pub use shard::{ShardLaunch, ShardSettings};
pub use values::{BatchSizes, Secret, value_name};
