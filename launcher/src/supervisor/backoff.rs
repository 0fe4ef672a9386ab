//! Pauses before a part is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// Time that a part must have been ready for to count as healthy.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Pauses that double from 100 ms to 30 s, and start over after 60 s of health.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Returns the pause after a part was ready for `healthy_for`.
    pub fn pause_after(&mut self, healthy_for: Duration) -> Duration {
        if healthy_for >= HEALTHY_AFTER {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_start_over_after_health() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..11)
            .map(|_| backoff.pause_after(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9..], [30_000, 30_000]);
        assert_eq!(backoff.pause_after(HEALTHY_AFTER), FIRST);
        assert_eq!(backoff.pause_after(Duration::from_secs(59)), FIRST * 2);
    }
}
