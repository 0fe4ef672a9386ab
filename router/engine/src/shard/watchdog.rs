//! Notices a shard that does not answer. The limit of a step follows from the times of the steps before it.

use std::time::{Duration, Instant};

/// Interval at which the oldest step in flight is checked.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Lower bound of the limit once steps are known. A machine that swaps, or a kernel compiled for a new shape, can
/// make a short step take many times as long as those before it.
const FLOOR: Duration = Duration::from_secs(60);

/// A step is overdue after this many times its expected time.
const TIMES_EXPECTED: f64 = 20.0;

/// `--shard-timeout` bounds the limit, but never below this many times the expected time.
const TIMES_EXPECTED_AT_LEAST: f64 = 4.0;

/// Time after a step became overdue within which the launcher must end the shard.
pub(crate) const UNTIL_GIVEN_UP: Duration = Duration::from_secs(30);

/// Factor by which each step lowers the maximum of the steps before it.
const DECAY: f64 = 0.98;

/// Shorter contexts count as this long: below it a step's time does not grow with the context.
const SHORT_CONTEXT_TOKENS: usize = 256;

/// Size of a step, on which its time depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub num_sequences: usize,
    pub num_tokens: usize,
    /// Context of the longest sequence, up to the last computed token.
    pub context_tokens: usize,
}

impl Work {
    /// One token without context.
    pub fn of_a_token() -> Self {
        Self {
            num_sequences: 1,
            num_tokens: 1,
            context_tokens: 1,
        }
    }

    fn is_decode(&self) -> bool {
        self.num_tokens <= self.num_sequences
    }

    fn context(&self) -> f64 {
        self.context_tokens.max(SHORT_CONTEXT_TOKENS) as f64
    }
}

/// Decaying maximum over the steps of one kind, as time and as time for each token of the context.
#[derive(Debug, Default, Clone, Copy)]
struct Slowest {
    us: f64,
    us_per_context_token: f64,
}

impl Slowest {
    fn observe(&mut self, us: f64, work: Work) {
        self.us = us.max(self.us * DECAY);
        let per_token = us / work.context();
        self.us_per_context_token = per_token.max(self.us_per_context_token * DECAY);
    }

    /// An upper bound, since no step's time grows faster than its context.
    fn expected_us(&self, work: Work) -> f64 {
        self.us.max(self.us_per_context_token * work.context())
    }
}

/// Watches the oldest step or batch in flight.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// Value of `--shard-timeout`.
    timeout: Duration,
    /// Times of steps with one token for each sequence.
    decode: Option<Slowest>,
    /// Times of other steps, for each token.
    prefill_token: Option<Slowest>,
    /// Time that the oldest step was observed to wait: the sum of the intervals between checks, so that a pause of
    /// this process (SIGSTOP, a suspended machine) does not count.
    waited: Duration,
    looked_at: Option<Instant>,
}

/// A step that has waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overdue {
    pub work: Work,
    pub waited: Duration,
    pub limit: Duration,
}

impl Watchdog {
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            decode: None,
            prefill_token: None,
            waited: Duration::ZERO,
            looked_at: None,
        }
    }

    /// Records an answer that took the shard `spent` of computing.
    pub fn answered(&mut self, work: Work, spent: Duration) {
        self.start();
        if work.num_tokens == 0 {
            return;
        }
        let us = spent.as_micros() as f64;
        let (kind, us) = if work.is_decode() {
            (&mut self.decode, us)
        } else {
            (&mut self.prefill_token, us / work.num_tokens as f64)
        };
        kind.get_or_insert_default().observe(us, work);
    }

    /// Starts to wait anew, for the next answer or for another shard.
    pub fn start(&mut self) {
        self.waited = Duration::ZERO;
        self.looked_at = None;
    }

    /// Checks the oldest work in flight. Call it every [`LOOK_EVERY`].
    pub fn look(&mut self, oldest: Option<Work>, now: Instant) -> Option<Overdue> {
        let Some(work) = oldest else {
            self.start();
            return None;
        };
        let since = self.looked_at.replace(now);
        let passed = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.waited += passed.min(2 * LOOK_EVERY);
        let limit = self.limit(work);
        (self.waited >= limit).then_some(Overdue {
            work,
            waited: self.waited,
            limit,
        })
    }

    fn limit(&self, work: Work) -> Duration {
        let Some(us) = self.expected_us(work) else {
            return self.timeout;
        };
        let times = |factor: f64| Duration::from_secs_f64((us * factor / 1e6).min(1e9));
        let max = self.timeout.max(times(TIMES_EXPECTED_AT_LEAST));
        times(TIMES_EXPECTED).max(FLOOR).min(max)
    }

    fn expected_us(&self, work: Work) -> Option<f64> {
        if work.num_tokens == 0 {
            return Some(0.0);
        }
        let tokens = work.num_tokens as f64;
        if work.is_decode() {
            // While no decode is known: at worst each one computes its whole context.
            let as_prefill = |token: Slowest| token.expected_us(work) * tokens * work.context();
            let known = self.decode.map(|decode| decode.expected_us(work));
            known.or_else(|| self.prefill_token.map(as_prefill))
        } else {
            // While no prefill is known: at worst each token takes as long as a decode.
            let known = self.prefill_token.or(self.decode);
            known.map(|token| token.expected_us(work) * tokens)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(600);

    fn work(num_sequences: usize, num_tokens: usize, context_tokens: usize) -> Work {
        Work {
            num_sequences,
            num_tokens,
            context_tokens,
        }
    }

    fn after(steps: &[(Work, Duration)], timeout: Duration) -> Watchdog {
        let mut watchdog = Watchdog::new(timeout);
        for (work, spent) in steps {
            watchdog.answered(*work, *spent);
        }
        watchdog
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_limit_follows_earlier_steps_and_has_a_floor() {
        let decode = work(8, 8, 100);
        let prefill = work(1, 512, 512);
        assert_eq!(after(&[], TIMEOUT).limit(decode), TIMEOUT, "nothing known");
        let quick = after(&[(decode, ms(5)), (prefill, ms(200))], TIMEOUT);
        assert_eq!(quick.limit(decode), FLOOR);
        assert_eq!(quick.limit(prefill), FLOOR);
        let slow = after(&[(decode, ms(10_000)), (prefill, ms(20_000))], TIMEOUT);
        assert_eq!(slow.limit(decode), ms(200_000));
        assert_eq!(slow.limit(prefill), ms(400_000));
    }

    #[test]
    fn a_long_prompt_in_one_piece_has_a_long_limit() {
        let known = after(&[(work(1, 500, 500), ms(5_000))], TIMEOUT);
        // 10 ms a token at 500 tokens of context: at worst 640 ms a token at 32,000.
        let long = work(1, 32_000, 32_000);
        assert!(known.limit(long) >= ms(4 * 640 * 32_000));
        // A decode of a path without a cache computes the whole context once more.
        assert!(known.limit(work(1, 1, 32_000)) >= ms(4 * 640 * 32_000));
        let of_decodes = after(&[(work(1, 1, 1), ms(500))], TIMEOUT);
        assert!(of_decodes.limit(long) >= ms(4 * 500 * 32_000));
    }

    #[test]
    fn the_flag_bounds_the_limit_of_short_steps() {
        let timeout = ms(5_000);
        let decode = work(1, 1, 10);
        assert_eq!(after(&[(decode, ms(5))], timeout).limit(decode), timeout);
        assert_eq!(
            after(&[(decode, ms(3_000))], timeout).limit(decode),
            ms(12_000)
        );
    }

    #[test]
    fn one_slow_step_is_forgotten_over_time() {
        let decode = work(1, 1, 10);
        let mut watchdog = after(&[(decode, ms(25_000))], TIMEOUT);
        assert_eq!(watchdog.limit(decode), ms(500_000));
        for _ in 0..200 {
            watchdog.answered(decode, ms(5));
        }
        assert_eq!(watchdog.limit(decode), FLOOR);
    }

    #[test]
    fn only_observed_waiting_counts() {
        let decode = work(1, 1, 10);
        let timeout = ms(5_000);
        let mut watchdog = Watchdog::new(timeout);
        let start = Instant::now();
        assert_eq!(watchdog.look(Some(decode), start), None);
        // The process was stopped for an hour.
        let after_pause = start + Duration::from_secs(3600);
        assert_eq!(watchdog.look(Some(decode), after_pause), None);
        let mut now = after_pause;
        let mut looks = 0;
        let overdue = loop {
            now += LOOK_EVERY;
            looks += 1;
            if let Some(overdue) = watchdog.look(Some(decode), now) {
                break overdue;
            }
        };
        assert_eq!((looks, overdue.limit), (3, timeout));
        watchdog.answered(decode, ms(1));
        assert_eq!(watchdog.look(Some(decode), now), None);
        assert_eq!(watchdog.look(None, now + LOOK_EVERY), None);
    }
}
