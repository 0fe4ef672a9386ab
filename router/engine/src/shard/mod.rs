//! Everything that talks to the shard or watches it: its client, its health, and its tokenizer.

pub(crate) mod client;
pub(crate) mod monitor;
pub(crate) mod tokenizer;
pub(crate) mod vitals;
pub(crate) mod watchdog;
