//! The pool and its tree against a plain model: a map from prefixes to blocks.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::request::CacheNamespace;

const BLOCK_SIZE: usize = 2;

fn pool(total: u32) -> BlockPool {
    BlockPool::new(total, Some(BLOCK_SIZE), RandomState::new())
}

fn namespace(number: u8) -> Namespace {
    let salt = Some(number.to_string());
    (number > 0).then(|| {
        Arc::new(CacheNamespace {
            salt,
            ..CacheNamespace::default()
        })
    })
}

/// A sequence: its key, its blocks, and its tokens.
struct Text {
    namespace: u8,
    key: PrefixKey,
    tokens: Vec<u32>,
    blocks: Blocks,
}

impl Text {
    fn new(number: u8, tokens: &[u32]) -> Self {
        Text {
            namespace: number,
            key: PrefixKey::new(namespace(number)),
            tokens: tokens.to_vec(),
            blocks: Blocks::default(),
        }
    }

    fn num_full(&self) -> usize {
        self.tokens.len() / BLOCK_SIZE
    }

    fn adopt(&mut self, pool: &mut BlockPool) -> usize {
        let limit = self.num_full();
        pool.adopt(&mut self.blocks, &mut self.key, &self.tokens, limit)
    }

    /// Allocates the missing blocks and computes all tokens.
    fn compute(&mut self, pool: &mut BlockPool) -> bool {
        let missing = self.tokens.len().div_ceil(BLOCK_SIZE) - self.blocks.len();
        if !pool.extend(&mut self.blocks, missing) {
            return false;
        }
        let num_full = self.num_full();
        pool.share(&mut self.blocks, &mut self.key, &self.tokens, num_full);
        true
    }
}

#[test]
fn without_a_cache_blocks_are_returned_and_never_shared() {
    let mut pool = BlockPool::new(4, None, RandomState::new());
    let (mut a, mut b) = (Text::new(0, &[1; 6]), Text::new(0, &[1; 4]));
    assert!(a.compute(&mut pool));
    assert_eq!(b.adopt(&mut pool), 0);
    assert!(!b.compute(&mut pool), "only one is left");
    assert_eq!(b.blocks.len(), 0);
    assert!(pool.extend(&mut b.blocks, 1));
    assert_eq!(a.blocks.ids(), [0, 1, 2]);
    assert_eq!(
        pool.check_integrity([&a.blocks, &b.blocks].into_iter()),
        Ok(())
    );
    pool.release(&mut a.blocks);
    assert_eq!(
        (pool.num_free(), pool.num_used(), pool.num_cached()),
        (3, 1, 0)
    );
    assert!(
        pool.check_integrity([&a.blocks].into_iter()).is_err(),
        "b's block is unaccounted for"
    );
}

#[test]
fn equal_text_is_found_within_its_namespace_only() {
    let mut pool = pool(8);
    let mut a = Text::new(0, &[1, 2, 3, 4, 5]);
    assert!(a.compute(&mut pool));
    let mut same = Text::new(0, &[1, 2, 3, 4, 6, 7]);
    assert_eq!(same.adopt(&mut pool), 2);
    assert_eq!(same.blocks.ids(), &a.blocks.ids()[..2]);
    assert_eq!(Text::new(1, &[1, 2, 3, 4]).adopt(&mut pool), 0);
    assert_eq!(Text::new(0, &[3, 4]).adopt(&mut pool), 0, "not a beginning");
    pool.release(&mut a.blocks);
    pool.release(&mut same.blocks);
    assert_eq!((pool.num_used(), pool.num_cached()), (0, 2));
}

#[test]
fn every_field_of_a_namespace_separates_it() {
    let plain = CacheNamespace::default();
    let all = [
        plain.clone(),
        CacheNamespace {
            adapter: Some("x".into()),
            ..plain.clone()
        },
        CacheNamespace {
            media_hash: Some([7; 32]),
            ..plain.clone()
        },
        CacheNamespace {
            tenant: Some(0),
            ..plain.clone()
        },
        CacheNamespace {
            salt: Some("0".into()),
            ..plain.clone()
        },
        CacheNamespace {
            salt: Some("x".into()),
            ..plain.clone()
        },
        CacheNamespace {
            length_class: 1,
            ..plain
        },
    ];
    let mut pool = pool(8);
    for namespace in &all {
        let mut text = Text::new(0, &[1, 2]);
        text.key = PrefixKey::new(Some(Arc::new(namespace.clone())));
        assert_eq!(text.adopt(&mut pool), 0);
        assert!(text.compute(&mut pool));
        pool.release(&mut text.blocks);
        assert_eq!(text.adopt(&mut pool), 1);
        pool.release(&mut text.blocks);
    }
    assert_eq!(pool.num_cached(), all.len());
}

#[test]
fn two_sequences_computing_one_block_keep_their_own_copies() {
    let mut pool = pool(8);
    let (mut a, mut b) = (Text::new(0, &[1, 2, 3, 4]), Text::new(0, &[1, 2, 3, 4]));
    assert!(pool.extend(&mut b.blocks, 2));
    assert!(a.compute(&mut pool) && b.compute(&mut pool));
    assert_ne!(a.blocks.ids(), b.blocks.ids());
    b.tokens.extend([5, 6]);
    assert!(b.compute(&mut pool));
    pool.release(&mut a.blocks);
    let check = pool.check_integrity([&b.blocks].into_iter());
    assert_eq!(check, Ok(()));
    pool.release(&mut b.blocks);
    assert_eq!((pool.num_used(), pool.num_cached()), (0, 3));
}

#[test]
fn a_failed_block_is_dropped_with_its_descendants_only() {
    let mut pool = pool(8);
    let mut a = Text::new(0, &[1, 2, 3, 4, 5, 6]);
    assert!(a.compute(&mut pool));
    pool.confirm(&mut a.blocks, 1);
    let doubtful = pool.unconfirmed(&a.blocks);
    assert_eq!(doubtful.len(), 2);
    pool.release(&mut a.blocks);
    let (first, depth) = pool.first_unconfirmed(&doubtful).expect("one of them");
    assert_eq!((first, depth), (doubtful[0], 1));
    pool.forget(first);
    assert_eq!(pool.first_unconfirmed(&doubtful), None);
    assert_eq!(a.adopt(&mut pool), 1);
    assert_eq!(pool.check_integrity([&a.blocks].into_iter()), Ok(()));
}

/// A model of the pool without its data structures.
#[derive(Default)]
struct Model {
    known: HashMap<(u8, Vec<u32>), Known>,
    clock: u64,
    num_private: usize,
}

struct Known {
    block: u32,
    holders: usize,
    last_use: u64,
}

impl Model {
    fn longest(&self, text: &Text) -> usize {
        let known = |blocks: &usize| {
            let prefix = text.tokens[..blocks * BLOCK_SIZE].to_vec();
            self.known.contains_key(&(text.namespace, prefix))
        };
        (1..=text.num_full()).take_while(known).count()
    }

    fn prefixes(text: &Text, count: usize) -> impl Iterator<Item = (u8, Vec<u32>)> {
        (1..=count).map(|blocks| (text.namespace, text.tokens[..blocks * BLOCK_SIZE].to_vec()))
    }

    fn hold(&mut self, text: &Text, count: usize) {
        for prefix in Self::prefixes(text, count) {
            self.known.get_mut(&prefix).expect("known").holders += 1;
        }
    }

    /// The least recently used leaf without holders.
    fn evict(&mut self) {
        let leaf = |prefix: &&(u8, Vec<u32>)| {
            let longer = |other: &&(u8, Vec<u32>)| {
                other.0 == prefix.0
                    && other.1.len() > prefix.1.len()
                    && other.1.starts_with(&prefix.1)
            };
            self.known[prefix].holders == 0 && !self.known.keys().any(|other| longer(&other))
        };
        let oldest = self
            .known
            .keys()
            .filter(leaf)
            .min_by_key(|prefix| self.known[prefix].last_use);
        let oldest = oldest.expect("something to evict").clone();
        self.known.remove(&oldest);
    }

    /// Notes that `text` has computed all its tokens. Before, it had `known` full blocks and `had` blocks in total.
    fn compute(&mut self, text: &Text, known: usize, had: usize, total: usize) {
        let taken = text.blocks.len() - had;
        let free = total - self.known.len() - self.num_private;
        for _ in free..taken {
            self.evict();
        }
        self.num_private += taken;
        for (i, prefix) in Self::prefixes(text, text.num_full())
            .enumerate()
            .skip(known)
        {
            let mut added = false;
            let entry = self.known.entry(prefix).or_insert_with(|| {
                added = true;
                Known {
                    block: text.blocks.ids()[i],
                    holders: 0,
                    last_use: 0,
                }
            });
            entry.holders += 1;
            self.num_private -= usize::from(added);
        }
    }

    fn release(&mut self, text: &Text, known: usize) {
        let own = text.blocks.ids().iter().enumerate().filter(|(i, id)| {
            let prefix = text.tokens.get(..(i + 1) * BLOCK_SIZE);
            let prefix = prefix
                .filter(|_| *i < known)
                .map(|p| (text.namespace, p.to_vec()));
            prefix.is_none_or(|prefix| self.known[&prefix].block != **id)
        });
        self.num_private -= own.count();
        let prefixes: Vec<_> = Self::prefixes(text, known).collect();
        for prefix in prefixes.iter().rev() {
            self.clock += 1;
            let entry = self.known.get_mut(prefix).expect("held");
            entry.holders -= 1;
            entry.last_use = self.clock;
        }
    }
}

/// The block of a prefix. Looking it up does not count as a use.
fn block_of(pool: &BlockPool, number: u8, tokens: &[u32]) -> Option<u32> {
    let tree = pool.tree.as_ref()?;
    let namespace = namespace(number);
    let mut hashes = Vec::new();
    tree.extend_hashes(&mut hashes, &namespace, tokens, tokens.len());
    let blocks = hashes.iter().zip(tokens.chunks_exact(BLOCK_SIZE));
    let mut block = None;
    for (hash, tokens) in blocks {
        block = Some(tree.find(block, *hash, &namespace, tokens)?);
    }
    block
}

#[derive(Debug, Clone)]
enum Action {
    Begin {
        namespace: u8,
        tokens: Vec<u32>,
        looks_up: bool,
    },
    Grow {
        which: usize,
        tokens: Vec<u32>,
    },
    End {
        which: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let few = |most| prop::collection::vec(0u32..2, 1..most);
    prop_oneof![
        3 => (0u8..2, few(14), prop::bool::weighted(0.8))
            .prop_map(|(namespace, tokens, looks_up)| Action::Begin { namespace, tokens, looks_up }),
        3 => (0usize..6, few(5)).prop_map(|(which, tokens)| Action::Grow { which, tokens }),
        3 => (0usize..6).prop_map(|which| Action::End { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// For any order of beginnings, growth and ends, the tree equals the model's map, look-ups find the model's
    /// blocks, and evictions take the model's blocks.
    #[test]
    fn the_tree_is_a_map_from_prefixes_to_blocks(
        actions in prop::collection::vec(action(), 1..120),
        total in 4u32..24,
    ) {
        let mut pool = pool(total);
        let mut model = Model::default();
        let mut texts: Vec<(Text, usize)> = Vec::new();
        for action in actions {
            match action {
                Action::Begin { namespace, tokens, looks_up } => {
                    let mut text = Text::new(namespace, &tokens);
                    let limit = text.num_full();
                    let (estimate, unused) = pool.estimate(&mut text.key, &text.tokens, limit);
                    let longest = model.longest(&text);
                    prop_assert_eq!(estimate, longest);
                    let idle = |prefix: &(u8, Vec<u32>)| model.known[prefix].holders == 0;
                    let idle = Model::prefixes(&text, longest).filter(idle).count();
                    prop_assert_eq!(unused, idle);
                    let mut found = 0;
                    if looks_up {
                        found = text.adopt(&mut pool);
                        prop_assert_eq!(found, longest);
                        model.hold(&text, found);
                    }
                    if text.compute(&mut pool) {
                        model.compute(&text, found, found, total as usize);
                    } else {
                        text.tokens.truncate(found * BLOCK_SIZE);
                        text.key.hashes.truncate(found);
                    }
                    let known = text.num_full();
                    texts.push((text, known));
                }
                Action::Grow { which, tokens } => {
                    let Some((text, known)) = texts.get_mut(which) else { continue };
                    let (before, had) = (text.tokens.len(), text.blocks.len());
                    text.tokens.extend(tokens);
                    if text.compute(&mut pool) {
                        model.compute(text, *known, had, total as usize);
                        *known = text.num_full();
                    } else {
                        text.tokens.truncate(before);
                    }
                }
                Action::End { which } => {
                    if which < texts.len() {
                        let (mut text, known) = texts.remove(which);
                        model.release(&text, known);
                        pool.release(&mut text.blocks);
                    }
                }
            }
            let held = texts.iter().map(|(text, _)| &text.blocks);
            prop_assert_eq!(pool.check_integrity(held), Ok(()));
            prop_assert_eq!(pool.num_cached(), model.known.len());
            for (prefix, known) in &model.known {
                prop_assert_eq!(block_of(&pool, prefix.0, &prefix.1), Some(known.block));
            }
        }
    }
}
