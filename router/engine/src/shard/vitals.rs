//! How a part that drives a shard is, for `/health` and for the launcher.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::request::GenerationError;
use crate::shard::watchdog::Overdue;

/// A shard that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// For people.
    pub reason: String,
    /// When it was noticed.
    pub since: Instant,
}

/// Written by the task, read by others.
#[derive(Debug, Default)]
pub struct Vitals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hang: Option<Hang>,
    /// When the task was last seen to run; `None`: it is not meant to run.
    beat: Option<Instant>,
    /// Why no shard will come back.
    given_up: Option<String>,
}

impl Vitals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that does not answer, from when it is noticed until another one, or its answer, is there.
    pub fn hang(&self) -> Option<Hang> {
        self.state().hang.clone()
    }

    /// How long the task has not run. It runs every second, whatever there is to do.
    pub fn silent_for(&self) -> Duration {
        self.state()
            .beat
            .map_or(Duration::ZERO, |beat| beat.elapsed())
    }

    /// No shard will come back: within a second everything that was admitted fails with this reason, and nothing more is
    /// admitted.
    pub fn give_up(&self, reason: String) {
        self.state().given_up = Some(reason);
    }

    /// Why no shard will come back, once that is certain.
    pub(crate) fn given_up(&self) -> Option<GenerationError> {
        let reason = self.state().given_up.clone();
        reason.map(GenerationError::GivenUp)
    }

    /// The task runs.
    pub(crate) fn beat(&self) {
        self.state().beat = Some(Instant::now());
    }

    /// The task has ended, as it was meant to.
    pub(crate) fn ended(&self) {
        self.state().beat = None;
    }

    /// The shard does not answer. Returns whether that is news.
    pub(crate) fn hangs(&self, reason: String) -> bool {
        let mut state = self.state();
        let is_news = state.hang.is_none();
        let since = state
            .hang
            .as_ref()
            .map_or_else(Instant::now, |hang| hang.since);
        state.hang = Some(Hang { reason, since });
        is_news
    }

    /// The shard answers, or there is another one. Returns whether one hung.
    pub(crate) fn answers(&self) -> bool {
        self.state().hang.take().is_some()
    }

    /// What a look at the oldest step has found. An error: nobody has ended the shard in time, and it is given up.
    pub(crate) fn looked(&self, overdue: Option<Overdue>) -> Result<(), String> {
        self.beat();
        let Some(Overdue {
            work,
            waited,
            limit,
        }) = overdue
        else {
            return Ok(());
        };
        let reason = format!(
            "the shard has not answered a step of {} tokens for {} s; steps like it are given {} s",
            work.num_tokens,
            waited.as_secs(),
            limit.as_secs_f64().ceil()
        );
        if self.hangs(reason.clone()) {
            tracing::error!("{reason}");
        }
        if waited >= limit + crate::shard::watchdog::UNTIL_GIVEN_UP {
            return Err(reason);
        }
        Ok(())
    }
}
