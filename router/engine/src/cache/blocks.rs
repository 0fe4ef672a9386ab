//! Owners of the cache blocks: a block is free, held by sequences, or cached. Blocks are handed out and taken back
//! here and nowhere else.

use std::hash::RandomState;
use std::sync::Arc;

use crate::cache::prefix_tree::{Namespace, NodeId, PrefixTree};
use crate::request::CacheNamespace;

/// Pool of the cache's block ids. Blocks leave it as [`Blocks`] and must return through [`BlockPool::release`].
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    total: usize,
    /// Cached full blocks; `None`: nothing is shared.
    tree: Option<PrefixTree>,
    num_evicted: u64,
}

/// Blocks held by one sequence, in the order of its block table.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    ids: Vec<u32>,
    /// Nodes of the first full blocks. A node has another block where another sequence computed the same tokens at
    /// the same time; this sequence's own block is then unknown to the tree.
    nodes: Vec<u32>,
    /// Number of `nodes` that are confirmed, from the first on.
    num_confirmed: usize,
}

impl Blocks {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// True if the sequence reads this node's block, which stands at index `depth` of its prefix.
    pub fn uses(&self, node: NodeId, depth: usize) -> bool {
        self.nodes.get(depth) == Some(&node.block)
    }
}

/// Keys under which a sequence's blocks are cached.
#[derive(Debug, Default)]
pub(crate) struct PrefixKey {
    namespace: Namespace,
    /// Hashes of the first full blocks, computed when they are first needed.
    hashes: Vec<u64>,
}

impl PrefixKey {
    pub fn new(namespace: Namespace) -> Self {
        PrefixKey {
            namespace,
            hashes: Vec::new(),
        }
    }

    /// Changes the length class, which changes all hashes; see [`CacheNamespace::length_class`].
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
    /// A pool of `total` free blocks. With `block_size_tokens`, full blocks are shared.
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

    /// Number of available blocks: free ones, and cached ones that no sequence holds.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.tree.as_ref().map_or(0, PrefixTree::num_unreferenced)
    }

    /// Number of blocks that sequences hold.
    pub fn num_used(&self) -> usize {
        self.total - self.num_free()
    }

    /// Number of cached blocks, held or not.
    pub fn num_cached(&self) -> usize {
        self.tree.as_ref().map_or(0, PrefixTree::len)
    }

    /// Number of blocks evicted since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.num_evicted)
    }

    pub fn shares(&self) -> bool {
        self.tree.is_some()
    }

    /// Appends `count` blocks to `blocks`. When fewer are available, returns false and changes nothing.
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

    /// Takes back all of `blocks`.
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

    /// Estimates how many of the first `limit` blocks of `tokens` are cached, and how many of these no sequence
    /// holds.
    pub fn estimate(&self, key: &mut PrefixKey, tokens: &[u32], limit: usize) -> (usize, usize) {
        let Some(tree) = &self.tree else {
            return (0, 0);
        };
        tree.extend_hashes(&mut key.hashes, &key.namespace, tokens, limit);
        tree.estimate(&key.hashes[..limit.min(key.hashes.len())])
    }

    /// Appends the cached ones among the first `limit` blocks of `tokens` to `blocks`, which must be empty. Returns
    /// their number.
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

    /// Caches the first `num_full` blocks. The steps that compute them must have been scheduled.
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

    /// Confirms the first `num_full` blocks: a token was sampled from them without a failure.
    pub fn confirm(&mut self, blocks: &mut Blocks, num_full: usize) {
        let Some(tree) = &mut self.tree else {
            return;
        };
        while blocks.num_confirmed < num_full.min(blocks.nodes.len()) {
            let node = blocks.nodes[blocks.num_confirmed];
            // Another sequence computed this node's block; it was not read.
            if node != blocks.ids[blocks.num_confirmed] {
                return;
            }
            tree.confirm(node);
            blocks.num_confirmed += 1;
        }
    }

    /// Nodes of `blocks` that no sequence has confirmed.
    pub fn unconfirmed(&self, blocks: &Blocks) -> Vec<NodeId> {
        let Some(tree) = &self.tree else {
            return Vec::new();
        };
        let nodes = &blocks.nodes[blocks.num_confirmed..];
        let first = nodes.partition_point(|node| tree.is_confirmed(*node));
        nodes[first..].iter().map(|node| tree.id(*node)).collect()
    }

    /// The first of `nodes`, each the parent of the next, that is in the tree and not confirmed; and its depth.
    pub fn first_unconfirmed(&self, nodes: &[NodeId]) -> Option<(NodeId, usize)> {
        let tree = self.tree.as_ref()?;
        let doubtful = |node: &&NodeId| tree.contains(**node) && !tree.is_confirmed(node.block);
        let node = nodes.iter().find(doubtful)?;
        Some((*node, tree.depth(node.block)))
    }

    /// Removes a node and its descendants from the tree. No sequence may use them.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(tree) = &mut self.tree
            && tree.contains(node)
        {
            tree.remove_subtree(node.block, &mut self.free);
        }
    }

    /// Checks that every block is free, held once, or in the tree, and that the tree is intact. `held` are the blocks
    /// of all sequences.
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
