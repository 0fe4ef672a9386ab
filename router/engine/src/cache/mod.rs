//! The paged KV cache as the router sees it: blocks, and the tree of prefixes that share them.

pub(crate) mod blocks;
pub(crate) mod prefix_tree;
