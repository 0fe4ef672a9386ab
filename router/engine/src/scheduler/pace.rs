//! Estimates the time of steps, so that a request need not wait for two long ones.

use std::time::Duration;

use gridwork_proto::v1::StepResult;

/// A step from this length on is not followed by another before its result: requests that arrive meanwhile join the
/// next step. The shard then waits for that step for a few hundredths of this time.
const LONG: Duration = Duration::from_millis(20);

/// The weight of the latest step in an average.
const LATEST: f64 = 0.25;

/// Averages over the last steps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Time of steps that only decode.
    decode_us: Option<f64>,
    /// Time of other steps, for each token.
    prefill_token_us: Option<f64>,
}

impl Pace {
    /// Records the time of a computed step.
    pub fn observe(&mut self, num_sequences: usize, num_tokens: usize, result: &StepResult) {
        if num_tokens == 0 {
            return;
        }
        let spent_us = (result.forward_us + result.sample_us) as f64;
        let (average, latest) = if num_tokens > num_sequences {
            (&mut self.prefill_token_us, spent_us / num_tokens as f64)
        } else {
            (&mut self.decode_us, spent_us)
        };
        let before = average.unwrap_or(latest);
        *average = Some(before + LATEST * (latest - before));
    }

    /// True if a step of this size is expected to take long. False while nothing is known.
    pub fn is_long(&self, num_sequences: usize, num_tokens: usize) -> bool {
        let expected_us = if num_tokens > num_sequences {
            self.prefill_token_us.unwrap_or(0.0) * num_tokens as f64
        } else {
            self.decode_us.unwrap_or(0.0)
        };
        expected_us >= LONG.as_micros() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(us: u64) -> StepResult {
        StepResult {
            forward_us: us,
            ..Default::default()
        }
    }

    #[test]
    fn a_step_is_expected_to_take_as_long_as_similar_ones() {
        let mut pace = Pace::default();
        assert!(!pace.is_long(1, 512), "nothing is known yet");
        pace.observe(1, 100, &took(10_000));
        assert!(!pace.is_long(1, 100));
        assert!(pace.is_long(1, 512), "100 µs a token");
        assert!(!pace.is_long(64, 64), "a decode is something else");
        pace.observe(64, 64, &took(30_000));
        assert!(pace.is_long(64, 64));
        for _ in 0..8 {
            pace.observe(64, 64, &took(1000));
        }
        assert!(!pace.is_long(64, 64), "the latest steps count most");
        pace.observe(0, 0, &took(90_000));
        assert!(!pace.is_long(64, 64));
    }
}
