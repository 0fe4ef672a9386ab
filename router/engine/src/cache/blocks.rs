//! Which cache blocks are free, held by sequences, or kept for what was computed into them. The only place that hands
//! them out and takes them back.

use std::hash::RandomState;
use std::sync::Arc;

use crate::cache::prefix_tree::{Namespace, NodeId, PrefixTree};
use crate::request::CacheNamespace;

/// Pool of the cache's block ids. Blocks leave it as [`Blocks`] and must come back through [`BlockPool::release`].
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    total: usize,
    /// Full blocks, to be used again; `None`: nothing is shared.
    tree: Option<PrefixTree>,
    num_evicted: u64,
}

/// Blocks held by one sequence, in the order of its block table.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    ids: Vec<u32>,
    /// The nodes of the first full ones. Where a node has another block, that one was computed by another sequence at
    /// the same time, and the sequence's own block is known to nobody else.
    nodes: Vec<u32>,
    /// How many of `nodes` are confirmed.
    num_confirmed: usize,
}

impl Blocks {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether it uses what was computed into this node's block, `depth` blocks behind the first.
    pub fn uses(&self, node: NodeId, depth: usize) -> bool {
        self.nodes.get(depth) == Some(&node.block)
    }
}

/// A sequence's tokens, as keys of its blocks.
#[derive(Debug, Default)]
pub(crate) struct PrefixKey {
    namespace: Namespace,
    /// Of its first full blocks, as far as they were needed.
    hashes: Vec<u64>,
}

impl PrefixKey {
    pub fn new(namespace: Namespace) -> Self {
        PrefixKey {
            namespace,
            hashes: Vec::new(),
        }
    }

    /// The same tokens with keys of another class; see [`CacheNamespace::length_class`].
    pub fn set_length_class(&mut self, class: usize) {
        let known = self.namespace.as_ref().map_or(0, |own| own.length_class);
        if known == class {
            return;
        }
        let namespace = CacheNamespace {
            length_class: class,
            ..self.namespace.as_deref().cloned().unwrap_or_default()
        };
        let namespace = (namespace != CacheNamespace::default()).then(|| Arc::new(namespace));
        *self = PrefixKey::new(namespace);
    }
}

impl BlockPool {
    /// `block_size_tokens`: `None` when nothing is to be shared.
    pub fn new(total: u32, block_size_tokens: Option<usize>, hasher: RandomState) -> Self {
        // Popped from the end, so that low ids are used first and a small load touches little memory.
        BlockPool {
            free: (0..total).rev().collect(),
            total: total as usize,
            tree: block_size_tokens.map(|size| PrefixTree::new(size, hasher)),
            num_evicted: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Blocks that can be had, those included that are kept and not held.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.tree.as_ref().map_or(0, PrefixTree::num_unreferenced)
    }

    /// Blocks that sequences hold.
    pub fn num_used(&self) -> usize {
        self.total - self.num_free()
    }

    /// Blocks that can be found by what was computed into them.
    pub fn num_cached(&self) -> usize {
        self.tree.as_ref().map_or(0, PrefixTree::len)
    }

    /// Blocks evicted since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.num_evicted)
    }

    pub fn shares(&self) -> bool {
        self.tree.is_some()
    }

    /// Appends `count` blocks to `blocks`; false, and nothing changed, when there are fewer.
    pub fn extend(&mut self, blocks: &mut Blocks, count: usize) -> bool {
        if count > self.num_free() {
            return false;
        }
        for _ in 0..count {
            let id = self.free.pop().or_else(|| {
                self.num_evicted += 1;
                self.tree.as_mut().and_then(PrefixTree::evict)
            });
            blocks.ids.extend(id);
        }
        true
    }

    /// Takes back everything that `blocks` holds.
    pub fn release(&mut self, blocks: &mut Blocks) {
        while let Some(id) = blocks.ids.pop() {
            let node = blocks.nodes.get(blocks.ids.len()).copied();
            if let (Some(tree), Some(node)) = (&mut self.tree, node) {
                tree.release(node);
            }
            if node != Some(id) {
                self.free.push(id);
            }
        }
        *blocks = Blocks::default();
    }

    /// About how many of the first `limit` blocks of `tokens` are there already, and how many of these nobody holds.
    pub fn estimate(&self, key: &mut PrefixKey, tokens: &[u32], limit: usize) -> (usize, usize) {
        let Some(tree) = &self.tree else {
            return (0, 0);
        };
        tree.extend_hashes(&mut key.hashes, &key.namespace, tokens, limit);
        tree.estimate(&key.hashes[..limit.min(key.hashes.len())])
    }

    /// Gives to `blocks`, which must be empty, those of the first `limit` blocks of `tokens` that are there already.
    /// Returns their number.
    pub fn adopt(
        &mut self,
        blocks: &mut Blocks,
        key: &mut PrefixKey,
        tokens: &[u32],
        limit: usize,
    ) -> usize {
        let Some(tree) = &mut self.tree else {
            return 0;
        };
        tree.extend_hashes(&mut key.hashes, &key.namespace, tokens, limit);
        let chunks = tokens.chunks_exact(tree.block_size_tokens());
        for (hash, tokens) in key.hashes.iter().zip(chunks).take(limit) {
            let before = blocks.nodes.last().copied();
            let Some(node) = tree.find(before, *hash, &key.namespace, tokens) else {
                break;
            };
            tree.acquire(node);
            blocks.nodes.push(node);
            blocks.ids.push(node);
        }
        blocks.nodes.len()
    }

    /// Makes the first `num_full` blocks known: those that a step computes that is on its way, or was before.
    pub fn share(
        &mut self,
        blocks: &mut Blocks,
        key: &mut PrefixKey,
        tokens: &[u32],
        num_full: usize,
    ) {
        let Some(tree) = &mut self.tree else {
            return;
        };
        if num_full <= blocks.nodes.len() {
            return;
        }
        tree.extend_hashes(&mut key.hashes, &key.namespace, tokens, num_full);
        let size = tree.block_size_tokens();
        for i in blocks.nodes.len()..num_full {
            let (hash, tokens) = (key.hashes[i], &tokens[i * size..(i + 1) * size]);
            let before = blocks.nodes.last().copied();
            let node = match tree.find(before, hash, &key.namespace, tokens) {
                Some(node) => {
                    tree.acquire(node);
                    node
                }
                None => {
                    tree.insert(blocks.ids[i], before, hash, &key.namespace, tokens);
                    blocks.ids[i]
                }
            };
            blocks.nodes.push(node);
        }
    }

    /// A token was sampled from the first `num_full` blocks, and all was well.
    pub fn confirm(&mut self, blocks: &mut Blocks, num_full: usize) {
        let Some(tree) = &mut self.tree else {
            return;
        };
        while blocks.num_confirmed < num_full.min(blocks.nodes.len()) {
            let node = blocks.nodes[blocks.num_confirmed];
            // What another one computed was not read.
            if node != blocks.ids[blocks.num_confirmed] {
                return;
            }
            tree.confirm(node);
            blocks.num_confirmed += 1;
        }
    }

    /// Nodes on the way that have not been confirmed, by anyone.
    pub fn unconfirmed(&self, blocks: &Blocks) -> Vec<NodeId> {
        let Some(tree) = &self.tree else {
            return Vec::new();
        };
        let nodes = &blocks.nodes[blocks.num_confirmed..];
        let first = nodes.partition_point(|node| tree.is_confirmed(*node));
        nodes[first..].iter().map(|node| tree.id(*node)).collect()
    }

    /// Of nodes one behind the other, the first that is in the tree and not confirmed, and its depth.
    pub fn first_unconfirmed(&self, nodes: &[NodeId]) -> Option<(NodeId, usize)> {
        let tree = self.tree.as_ref()?;
        let doubtful = |node: &&NodeId| tree.contains(**node) && !tree.is_confirmed(node.block);
        let node = nodes.iter().find(doubtful)?;
        Some((*node, tree.depth(node.block)))
    }

    /// Takes a node and all behind it out of the tree. No sequence may use them.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(tree) = &mut self.tree
            && tree.contains(node)
        {
            tree.remove_subtree(node.block, &mut self.free);
        }
    }

    /// Every block is either free, or held once, or in the tree, which is whole. `held`: all blocks that sequences hold.
    pub fn check_integrity<'a>(
        &self,
        held: impl Iterator<Item = &'a Blocks>,
    ) -> Result<(), String> {
        let mut owner = vec![false; self.total];
        let mut references = vec![0; self.total];
        let mut own = |id: u32| match owner.get_mut(id as usize) {
            None => Err(format!("block {id} does not exist")),
            Some(true) => Err(format!("block {id} has two owners")),
            Some(seen) => {
                *seen = true;
                Ok(())
            }
        };
        for &id in &self.free {
            own(id)?;
        }
        for id in self.tree.iter().flat_map(PrefixTree::blocks) {
            own(id)?;
        }
        for blocks in held {
            if blocks.nodes.len() > blocks.ids.len() {
                return Err("a sequence is known for blocks that it does not have".into());
            }
            for &node in &blocks.nodes {
                references[node as usize] += 1;
            }
            for (i, &id) in blocks.ids.iter().enumerate() {
                if blocks.nodes.get(i) != Some(&id) {
                    own(id)?;
                }
            }
            if let Some(tree) = &self.tree {
                tree.check_path(&blocks.nodes)?;
            }
        }
        if let Some(lost) = owner.iter().position(|seen| !seen) {
            return Err(format!("block {lost} has no owner"));
        }
        match &self.tree {
            Some(tree) => tree.check_integrity(&references),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
