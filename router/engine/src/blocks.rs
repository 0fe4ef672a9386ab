//! Which cache blocks are free. The only place that hands them out and takes them back.

/// Pool of the cache's block ids. Blocks leave it as [`Blocks`] and must come back through [`BlockPool::release`].
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    total: usize,
}

/// Blocks held by one sequence, in the order of its block table.
#[derive(Debug, Default)]
pub(crate) struct Blocks(Vec<u32>);

impl Blocks {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

impl BlockPool {
    pub fn new(total: u32) -> Self {
        // Popped from the end, so that low ids are used first and a small load touches little memory.
        BlockPool {
            free: (0..total).rev().collect(),
            total: total as usize,
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    pub fn num_used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Appends `count` blocks to `blocks`; false, and nothing changed, when fewer are free.
    pub fn extend(&mut self, blocks: &mut Blocks, count: usize) -> bool {
        if count > self.free.len() {
            return false;
        }
        blocks
            .0
            .extend(self.free.drain(self.free.len() - count..).rev());
        true
    }

    /// Takes back everything that `blocks` holds.
    pub fn release(&mut self, blocks: &mut Blocks) {
        self.free.extend(blocks.0.drain(..).rev());
    }

    /// Every block is either free or held once. `held`: all blocks that sequences hold.
    pub fn check_integrity<'a>(
        &self,
        held: impl Iterator<Item = &'a Blocks>,
    ) -> Result<(), String> {
        let mut owner = vec![false; self.total];
        for &id in self
            .free
            .iter()
            .chain(held.flat_map(|blocks| blocks.0.iter()))
        {
            match owner.get_mut(id as usize) {
                None => return Err(format!("block {id} does not exist")),
                Some(true) => return Err(format!("block {id} has two owners")),
                Some(seen) => *seen = true,
            }
        }
        match owner.iter().position(|seen| !seen) {
            Some(lost) => Err(format!("block {lost} has no owner")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_are_never_shared() {
        let mut pool = BlockPool::new(4);
        let (mut a, mut b) = (Blocks::default(), Blocks::default());
        assert!(pool.extend(&mut a, 3));
        assert!(!pool.extend(&mut b, 2), "only one is left");
        assert_eq!(b.len(), 0);
        assert!(pool.extend(&mut b, 1));
        assert_eq!(a.ids(), [0, 1, 2]);
        assert_eq!(pool.check_integrity([&a, &b].into_iter()), Ok(()));
        pool.release(&mut a);
        assert_eq!((pool.num_free(), pool.num_used()), (3, 1));
        assert!(
            pool.check_integrity([&a].into_iter()).is_err(),
            "b's block is unaccounted for"
        );
    }
}
