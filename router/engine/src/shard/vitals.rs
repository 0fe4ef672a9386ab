//! Health of a task that drives a shard, for `/health` and for the launcher.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::GenerationError;
use crate::shard::watchdog::Overdue;

/// A shard that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// Reason for people to read.
    pub reason: String,
    /// Time at which the hang was noticed.
    pub since: Instant,
}

/// Health of the task and its shard. The task writes it; others read it.
#[derive(Debug, Default)]
pub struct Vitals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hang: Option<Hang>,
    /// Time at which the task last ran; `None`: it is not meant to run.
    beat: Option<Instant>,
    /// Reason why no shard will come back.
    given_up: Option<String>,
}

impl Vitals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current hang: set when it is noticed, cleared by an answer or by another shard.
    pub fn hang(&self) -> Option<Hang> {
        self.state().hang.clone()
    }

    /// Time since the task last ran. It runs every second even when there is nothing to do.
    pub fn silent_for(&self) -> Duration {
        self.state()
            .beat
            .map_or(Duration::ZERO, |beat| beat.elapsed())
    }

    /// Tells the task that no shard will come back. Within a second everything admitted fails with this reason, and
    /// nothing more is admitted.
    pub fn give_up(&self, reason: String) {
        self.state().given_up = Some(reason);
    }

    /// The error for all requests once no shard will come back.
    pub(crate) fn given_up(&self) -> Option<GenerationError> {
        let reason = self.state().given_up.clone();
        reason.map(GenerationError::GivenUp)
    }

    /// Notes that the task runs.
    pub(crate) fn beat(&self) {
        self.state().beat = Some(Instant::now());
    }

    /// Notes that the task has ended as intended.
    pub(crate) fn ended(&self) {
        self.state().beat = None;
    }

    /// Notes that the shard does not answer. Returns whether that is new.
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

    /// Notes that the shard answers, or that another one is connected. Returns whether it was hanging.
    pub(crate) fn answers(&self) -> bool {
        self.state().hang.take().is_some()
    }

    /// Notes the watchdog's verdict on the oldest step. An error says that the shard is given up: the launcher has
    /// not ended it in time.
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
