//! The router's view of the paged KV cache: blocks, and the prefix tree through which sequences share them.

pub(crate) mod blocks;
pub(crate) mod prefix_tree;
