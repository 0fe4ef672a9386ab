//! Warnings of a collector that does not take what it is sent.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval between two warnings.
const INTERVAL: Duration = Duration::from_secs(300);

/// A warning that is given now and then, and not for every batch that is lost.
#[derive(Debug)]
pub(super) struct CollectorWarning {
    /// Name of what is sent, in the plural.
    what: &'static str,
    endpoint: String,
    last: Mutex<Option<Instant>>,
}

impl CollectorWarning {
    pub fn new(what: &'static str, endpoint: &str) -> Self {
        Self {
            what,
            endpoint: endpoint.to_owned(),
            last: Mutex::new(None),
        }
    }

    /// Warns of a lost batch, if enough time has passed since the last warning.
    pub fn warn(&self, error: &dyn Display) {
        if self.may_warn(Instant::now()) {
            tracing::warn!(
                "the collector at {} does not take {}, which are lost meanwhile; requests are not affected: {error}",
                self.endpoint,
                self.what
            );
        }
    }

    /// True if enough time has passed since the last warning, which is then noted.
    pub fn may_warn(&self, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.duration_since(last) >= INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_warned_of_once_in_a_while() {
        let warning = CollectorWarning::new("traces", "http://down");
        let first = Instant::now();
        assert!(warning.may_warn(first));
        assert!(!warning.may_warn(first + INTERVAL / 2));
        assert!(warning.may_warn(first + INTERVAL));
        assert!(!warning.may_warn(first + INTERVAL));
    }
}
