//! A radix tree of full cache blocks, one node for each block.
//!
//! A node stands for the tokens of its block after those of its parent, so the path to a node is a prefix. A sequence
//! holds a reference on every node of its path. A node without references stays until its block is needed. Sequences
//! release their paths from the end, and unreferenced nodes are listed in the order of their release. A node
//! therefore never precedes its children in that list, and the first one is always a leaf: the least recently used.
//! Looking up, releasing and evicting take constant time.
//!
//! Nodes are found by a hash over their whole path and then compared token by token, so two texts are never confused.
//! The hash is keyed with random numbers of this process, so that no client can choose texts that collide.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::request::CacheNamespace;

/// Everything besides the tokens that must be equal for keys and values to be shared; `None`: the default.
pub(crate) type Namespace = Option<Arc<CacheNamespace>>;

const NONE: u32 = u32::MAX;

/// Identifies a node while it is in the tree. A later node of the same block has another serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId {
    pub block: u32,
    serial: u64,
}

#[derive(Debug, Clone)]
struct Node {
    /// Hash of the namespace and of all tokens up to the end of this block.
    hash: u64,
    /// 0 when the node is not in the tree.
    serial: u64,
    /// Namespace of a node without parent. Its descendants share it, and have `None` here.
    namespace: Namespace,
    parent: u32,
    depth: u32,
    references: u32,
    first_child: u32,
    next_sibling: u32,
    previous_sibling: u32,
    /// Neighbours in the list of unreferenced nodes.
    older: u32,
    newer: u32,
    /// True if a token was sampled from this node without a failure.
    confirmed: bool,
}

impl Node {
    const ABSENT: Node = Node {
        hash: 0,
        serial: 0,
        namespace: None,
        parent: NONE,
        depth: 0,
        references: 0,
        first_child: NONE,
        next_sibling: NONE,
        previous_sibling: NONE,
        older: NONE,
        newer: NONE,
        confirmed: false,
    };
}

#[derive(Debug)]
pub(crate) struct PrefixTree {
    block_size_tokens: usize,
    /// Nodes by block id, up to the highest block that ever had one.
    nodes: Vec<Node>,
    /// Tokens of each block's node, likewise.
    tokens: Vec<u32>,
    index: HashTable<u32>,
    /// Ends of the list of unreferenced nodes.
    oldest: u32,
    newest: u32,
    num_unreferenced: usize,
    last_serial: u64,
    hasher: RandomState,
}

impl PrefixTree {
    pub fn new(block_size_tokens: usize, hasher: RandomState) -> Self {
        PrefixTree {
            block_size_tokens,
            nodes: Vec::new(),
            tokens: Vec::new(),
            index: HashTable::new(),
            oldest: NONE,
            newest: NONE,
            num_unreferenced: 0,
            last_serial: 0,
            hasher,
        }
    }

    pub fn block_size_tokens(&self) -> usize {
        self.block_size_tokens
    }

    /// Number of nodes, which is the number of cached blocks.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Number of unreferenced nodes.
    pub fn num_unreferenced(&self) -> usize {
        self.num_unreferenced
    }

    /// Extends `hashes` to the first `count` blocks of `tokens`.
    pub fn extend_hashes(
        &self,
        hashes: &mut Vec<u64>,
        namespace: &Namespace,
        tokens: &[u32],
        count: usize,
    ) {
        let blocks = tokens.chunks_exact(self.block_size_tokens);
        for block in blocks.take(count).skip(hashes.len()) {
            hashes.push(self.hash(hashes.last().copied(), namespace, block));
        }
    }

    /// Hash of a block's node. `before` is the hash of its parent.
    fn hash(&self, before: Option<u64>, namespace: &Namespace, tokens: &[u32]) -> u64 {
        let before = before.unwrap_or_else(|| self.hasher.hash_one(namespace));
        self.hasher.hash_one((before, tokens))
    }

    /// Number of the blocks with these hashes that are in the tree, and how many of them are unreferenced. Takes time
    /// logarithmic in their number. Only hashes are compared: compare the tokens before using a block.
    pub fn estimate(&self, hashes: &[u64]) -> (usize, usize) {
        let node = |hash: &u64| {
            let same = |block: &u32| self.nodes[*block as usize].hash == *hash;
            let block = self.index.find(*hash, same)?;
            Some(&self.nodes[*block as usize])
        };
        let found = hashes.partition_point(|hash| node(hash).is_some());
        // A node has at least as many references as any below it.
        let in_use = hashes[..found]
            .partition_point(|hash| node(hash).is_some_and(|node| node.references > 0));
        (found, found - in_use)
    }

    /// Finds the child of `parent` that holds `tokens`.
    pub fn find(
        &self,
        parent: Option<u32>,
        hash: u64,
        namespace: &Namespace,
        tokens: &[u32],
    ) -> Option<u32> {
        let parent = parent.unwrap_or(NONE);
        self.index
            .find(hash, |&block| {
                let node = &self.nodes[block as usize];
                node.hash == hash
                    && node.parent == parent
                    && (parent != NONE || node.namespace == *namespace)
                    && self.tokens_of(block) == tokens
            })
            .copied()
    }

    /// Adds a node with one reference. `parent` must have no child with these tokens.
    pub fn insert(
        &mut self,
        block: u32,
        parent: Option<u32>,
        hash: u64,
        namespace: &Namespace,
        tokens: &[u32],
    ) {
        self.last_serial += 1;
        let mut node = Node {
            hash,
            serial: self.last_serial,
            references: 1,
            ..Node::ABSENT
        };
        match parent {
            None => node.namespace = namespace.clone(),
            Some(parent) => {
                node.parent = parent;
                node.depth = self.nodes[parent as usize].depth + 1;
                node.next_sibling = self.nodes[parent as usize].first_child;
                if node.next_sibling != NONE {
                    self.nodes[node.next_sibling as usize].previous_sibling = block;
                }
                self.nodes[parent as usize].first_child = block;
            }
        }
        if block as usize >= self.nodes.len() {
            self.nodes.resize(block as usize + 1, Node::ABSENT);
            self.tokens
                .resize(self.nodes.len() * self.block_size_tokens, 0);
        }
        self.nodes[block as usize] = node;
        let start = block as usize * self.block_size_tokens;
        self.tokens[start..start + self.block_size_tokens].copy_from_slice(tokens);
        let nodes = &self.nodes;
        self.index
            .insert_unique(hash, block, |other| nodes[*other as usize].hash);
    }

    /// Adds a reference. The caller must hold one on the parent.
    pub fn acquire(&mut self, block: u32) {
        if self.nodes[block as usize].references == 0 {
            self.unlink(block);
        }
        self.nodes[block as usize].references += 1;
    }

    /// Releases a reference. The caller must have released those on the node's descendants.
    pub fn release(&mut self, block: u32) {
        let node = &mut self.nodes[block as usize];
        node.references -= 1;
        if node.references > 0 {
            return;
        }
        node.older = self.newest;
        node.newer = NONE;
        match self.newest {
            NONE => self.oldest = block,
            newest => self.nodes[newest as usize].newer = block,
        }
        self.newest = block;
        self.num_unreferenced += 1;
    }

    /// Removes the least recently used of the unreferenced leaves and returns its block.
    pub fn evict(&mut self) -> Option<u32> {
        let block = Some(self.oldest).filter(|block| *block != NONE)?;
        self.remove(block);
        Some(block)
    }

    /// Removes a node and its descendants, all unreferenced, and appends their blocks to `removed`.
    pub fn remove_subtree(&mut self, top: u32, removed: &mut Vec<u32>) {
        let mut next = top;
        loop {
            let child = self.nodes[next as usize].first_child;
            if child != NONE {
                next = child;
                continue;
            }
            let parent = self.nodes[next as usize].parent;
            self.remove(next);
            removed.push(next);
            if next == top {
                return;
            }
            next = parent;
        }
    }

    /// Identity of the node of a block that is in the tree.
    pub fn id(&self, block: u32) -> NodeId {
        NodeId {
            block,
            serial: self.nodes[block as usize].serial,
        }
    }

    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes
            .get(id.block as usize)
            .is_some_and(|node| node.serial == id.serial)
    }

    /// Index of the node's block in the sequences that use it.
    pub fn depth(&self, block: u32) -> usize {
        self.nodes[block as usize].depth as usize
    }

    /// Marks the node's block as computed without a failure.
    pub fn confirm(&mut self, block: u32) {
        self.nodes[block as usize].confirmed = true;
    }

    pub fn is_confirmed(&self, block: u32) -> bool {
        self.nodes[block as usize].confirmed
    }

    fn tokens_of(&self, block: u32) -> &[u32] {
        let start = block as usize * self.block_size_tokens;
        &self.tokens[start..start + self.block_size_tokens]
    }

    /// Removes an unreferenced leaf.
    fn remove(&mut self, block: u32) {
        self.unlink(block);
        let node = std::mem::replace(&mut self.nodes[block as usize], Node::ABSENT);
        if node.parent != NONE {
            match node.previous_sibling {
                NONE => self.nodes[node.parent as usize].first_child = node.next_sibling,
                previous => self.nodes[previous as usize].next_sibling = node.next_sibling,
            }
            if node.next_sibling != NONE {
                self.nodes[node.next_sibling as usize].previous_sibling = node.previous_sibling;
            }
        }
        if let Ok(entry) = self.index.find_entry(node.hash, |other| *other == block) {
            entry.remove();
        }
    }

    /// Removes a node from the list of unreferenced ones.
    fn unlink(&mut self, block: u32) {
        let Node { older, newer, .. } = self.nodes[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        self.num_unreferenced -= 1;
    }

    /// Blocks that have a node.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        self.index.iter().copied()
    }

    /// Checks that each of these nodes is the parent of the next.
    pub fn check_path(&self, path: &[u32]) -> Result<(), String> {
        let mut parent = NONE;
        for &block in path {
            let node = self.nodes.get(block as usize);
            if node.is_none_or(|node| node.serial == 0 || node.parent != parent) {
                return Err(format!("block {block} is not where a sequence uses it"));
            }
            parent = block;
        }
        Ok(())
    }

    /// Checks the tree's invariants. `references` are the numbers of sequences that hold each block's node.
    pub fn check_integrity(&self, references: &[u32]) -> Result<(), String> {
        let present = self.nodes.iter().filter(|node| node.serial != 0).count();
        if present != self.index.len() {
            return Err(format!(
                "{present} nodes, and {} can be found",
                self.index.len()
            ));
        }
        let mut num_children = 0;
        for block in self.blocks() {
            let node = &self.nodes[block as usize];
            if node.references != references[block as usize] {
                return Err(format!(
                    "block {block} has {} references and {} holders",
                    node.references, references[block as usize]
                ));
            }
            let mut before = None;
            let parent = Some(node.parent).filter(|parent| *parent != NONE);
            if let Some(parent) = parent {
                let above = &self.nodes[parent as usize];
                before = Some(above.hash);
                if above.serial == 0 || above.depth + 1 != node.depth {
                    return Err(format!("block {block} hangs on no prefix"));
                }
                if above.references < node.references || node.confirmed && !above.confirmed {
                    return Err(format!(
                        "block {block} has more references than its parent, or is confirmed while its parent is not"
                    ));
                }
            }
            let tokens = self.tokens_of(block);
            if self.hash(before, &node.namespace, tokens) != node.hash
                || self.find(parent, node.hash, &node.namespace, tokens) != Some(block)
            {
                return Err(format!("block {block} cannot be found by its tokens"));
            }
            let mut child = node.first_child;
            let mut previous = NONE;
            while child != NONE {
                let below = &self.nodes[child as usize];
                if below.parent != block || below.previous_sibling != previous {
                    return Err(format!("block {child} is not below block {block}"));
                }
                num_children += 1;
                previous = child;
                child = below.next_sibling;
            }
        }
        let with_parent = self.nodes.iter().filter(|node| node.parent != NONE).count();
        if num_children != with_parent {
            return Err(format!(
                "{with_parent} nodes have a parent, and {num_children} are known to it"
            ));
        }
        self.check_order()
    }

    /// Checks that the list of unreferenced nodes is complete, children first.
    fn check_order(&self) -> Result<(), String> {
        let mut listed = vec![false; self.nodes.len()];
        let (mut block, mut previous, mut count) = (self.oldest, NONE, 0);
        while block != NONE {
            let node = &self.nodes[block as usize];
            if node.serial == 0 || node.references > 0 || node.older != previous {
                return Err(format!("block {block} cannot be evicted, and is to be"));
            }
            if std::mem::replace(&mut listed[block as usize], true) {
                return Err(format!("block {block} is to be evicted twice"));
            }
            if node.parent != NONE && listed[node.parent as usize] {
                return Err(format!(
                    "block {block} is to be evicted after the one before it"
                ));
            }
            count += 1;
            previous = block;
            block = node.newer;
        }
        let nodes = self.nodes.iter();
        let unreferenced = nodes
            .filter(|node| node.serial != 0 && node.references == 0)
            .count();
        if previous != self.newest || count != self.num_unreferenced || count != unreferenced {
            return Err(format!(
                "{unreferenced} nodes without references, {} counted, {count} listed",
                self.num_unreferenced
            ));
        }
        Ok(())
    }
}
