//! Shard deaths and exceptions that a sequence may have caused.

/// Number of shard deaths at the same place from which on a sequence is computed alone.
const DEATHS_UNTIL_ALONE: u32 = 2;
/// Number of shard deaths at which a sequence fails. The last one happened while it was alone.
pub(crate) const DEATHS_UNTIL_FAILED: u32 = 3;

/// Shard deaths and exceptions that this sequence may have caused.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CrashRecord {
    /// Number of consecutive deaths at the same place.
    pub deaths: u32,
    /// Number of the sequence's tokens at the last death.
    num_tokens: usize,
    /// True if a step that computed it among others raised an exception.
    raised: bool,
}

impl CrashRecord {
    /// Counts a death of the shard while it computed the sequence, which had `num_tokens` tokens.
    pub fn died_at(&mut self, num_tokens: usize) {
        self.deaths = if num_tokens > self.num_tokens {
            1
        } else {
            self.deaths + 1
        };
        self.num_tokens = self.num_tokens.max(num_tokens);
    }

    /// Notes that a step of several sequences raised an exception while the sequence had `num_tokens` tokens.
    pub fn raised_at(&mut self, num_tokens: usize) {
        if num_tokens > self.num_tokens {
            self.deaths = 0;
            self.num_tokens = num_tokens;
        }
        self.raised = true;
    }

    /// Clears the record once the sequence has more tokens than at the last death.
    pub fn reached(&mut self, num_tokens: usize) {
        if num_tokens > self.num_tokens {
            self.deaths = 0;
            self.raised = false;
        }
    }

    /// True if the sequence must be computed alone.
    pub fn is_suspect(self) -> bool {
        self.raised || self.deaths >= DEATHS_UNTIL_ALONE
    }
}
