//! The shard's side of a connection: its client, whether it lives, and its tokenizer.

pub(crate) mod client;
pub(crate) mod tokenizer;
pub(crate) mod vitals;
pub(crate) mod watchdog;
