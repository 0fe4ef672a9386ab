//! Watches a connected shard: feeds the watchdog and keeps the vitals up to date.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};

use crate::shard::vitals::Vitals;
use crate::shard::watchdog::{LOOK_EVERY, Watchdog, Work};

/// The watchdog of one task, and the vitals that others read.
pub(crate) struct Monitor {
    watchdog: Watchdog,
    vitals: Arc<Vitals>,
}

impl Monitor {
    pub fn new(shard_timeout: Duration, vitals: Arc<Vitals>) -> Self {
        Monitor {
            watchdog: Watchdog::new(shard_timeout),
            vitals,
        }
    }

    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Ticks at which [`Monitor::look`] is to be called.
    pub fn ticks() -> Interval {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    /// Starts to wait anew, for another shard.
    pub fn start(&mut self) {
        self.watchdog.start();
    }

    /// The shard has computed `work`, which took it `spent`.
    pub fn answered(&mut self, work: Work, spent: Duration) {
        self.watchdog.answered(work, spent);
        if self.vitals.answers() {
            tracing::warn!("the shard answers again");
        }
    }

    /// Looks at the oldest work in flight. An error says that the shard is given up: it has not answered, and the
    /// launcher has not ended it in time.
    pub fn look(&mut self, oldest: Option<Work>, now: Instant) -> Result<(), String> {
        let overdue = self.watchdog.look(oldest, now);
        self.vitals.looked(overdue)
    }
}
