//! Runs the router or the group of shards: starts it, waits until it is ready, watches it, and restarts it when it
//! ends.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::fault::{Fault, StartError, SupervisorError};
use super::{Backoff, Served};
use crate::logs::Log;
use crate::process::{Child, Exit};

/// Time between SIGTERM and SIGKILL, before anything was served.
const GRACE_WHILE_STARTING: Duration = Duration::from_secs(2);

/// Order to end, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    No,
    Gracefully,
    Now,
}

/// A part that is started, watched and restarted as a whole: the router, or the group of shards.
pub trait Supervised {
    /// Name for the log.
    fn name(&self) -> &'static str;
    /// Effect of its end on requests, for the log.
    fn consequence(&self) -> &'static str;
    /// Starts its processes.
    fn start(&mut self) -> Result<(), StartError>;
    /// Returns its running processes.
    fn children(&self) -> &[Child];
    /// Forgets its processes, killing those that still run.
    fn clear(&mut self);
    /// Waits until it is ready. [`Supervisor`] notices when its processes end.
    async fn ready(&self) -> Result<(), Fault>;
    /// Returns when something is wrong although its processes run.
    async fn watch(&self) -> Fault;
    /// Time between SIGTERM and SIGKILL.
    fn grace(&self) -> Duration;
}

/// Keeps one part running.
pub struct Supervisor {
    pub log: Log,
    /// Tells whether anything has been served: before that, any fault ends the launcher.
    pub served: Served,
    pub stop: watch::Receiver<Stop>,
    /// Maximum number of restarts in a row that do not become ready.
    pub max_restarts: u32,
}

impl Supervisor {
    /// Runs `part` until it is told to stop or cannot be kept running. None of its processes is left when this returns.
    pub async fn supervise(
        mut self,
        mut part: impl Supervised,
        is_ready: watch::Sender<bool>,
    ) -> Result<(), SupervisorError> {
        let mut backoff = Backoff::default();
        let mut failed_restarts = 0;
        let mut restarting = false;
        loop {
            let began = Instant::now();
            let mut ready_at = None;
            let mut stop = self.stop.clone();
            let name = part.name();
            let fault = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop != Stop::No) => None,
                fault = live(&mut part, || {
                    ready_at = Some(Instant::now());
                    is_ready.send_replace(true);
                    if restarting {
                        let seconds = began.elapsed().as_secs_f64();
                        self.log.info(format!("{name}: ready again after {seconds:.1} s"));
                    }
                }) => Some(fault),
            };
            let Some(fault) = fault else {
                self.end(&mut part).await;
                return Ok(());
            };
            is_ready.send_replace(false);
            self.kill_rest(&mut part, &fault).await;
            if !self.served.ask().await {
                return Err(fault.into());
            }
            if ready_at.is_some() {
                failed_restarts = 0;
            } else {
                failed_restarts += 1;
            }
            if failed_restarts >= self.max_restarts.max(1) {
                return Err(SupervisorError::GaveUp {
                    name: name.to_owned(),
                    restarts: failed_restarts,
                    last: fault,
                });
            }
            let pause = backoff.pause_after(ready_at.map_or(Duration::ZERO, |at| at.elapsed()));
            self.log.error(format!(
                "{fault}. Starting {name} again in {} s; {}",
                pause.as_secs_f64(),
                part.consequence()
            ));
            restarting = true;
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ends the part as ordered.
    async fn end(&mut self, part: &mut impl Supervised) {
        for child in part.children() {
            child.terminate();
        }
        // Before anything was served there is nothing to finish, and loading may not notice a signal.
        let grace = match self.served.noted() {
            true => part.grace(),
            false => GRACE_WHILE_STARTING,
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop == Stop::Now) => {}
            () = tokio::time::sleep(grace) => {
                let name = part.name();
                self.log.warn(format!("{name} did not end in time and is killed"));
            }
            () = all_ended(part.children()) => {}
        }
        for child in part.children() {
            child.kill();
        }
        all_ended(part.children()).await;
        for exit in part.children().iter().filter_map(Child::ended) {
            self.show_held_back(&exit);
        }
        part.clear();
    }

    /// Kills the processes that still run after a fault.
    async fn kill_rest(&self, part: &mut impl Supervised, fault: &Fault) {
        for child in part.children() {
            child.kill();
        }
        all_ended(part.children()).await;
        for exit in part.children().iter().filter_map(Child::ended) {
            match fault {
                // The report of the fault shows it.
                Fault::Ended(cause) if cause.tag == exit.tag => {}
                _ => self.show_held_back(&exit),
            }
        }
        part.clear();
    }

    fn show_held_back(&self, exit: &Exit) {
        if let Some(record) = &exit.fatal {
            self.log.held_back(&exit.tag, record);
        }
    }
}

/// Runs a part once, from its start to the fault that ended it.
async fn live(part: &mut impl Supervised, on_ready: impl FnOnce()) -> Fault {
    if let Err(error) = part.start() {
        return error.into();
    }
    let fault = tokio::select! {
        biased;
        exit = first_end(part.children()) => return Fault::Ended(Box::new(exit)),
        fault = async {
            match part.ready().await {
                Ok(()) => {
                    on_ready();
                    part.watch().await
                }
                Err(fault) => fault,
            }
        } => fault,
    };
    // A process that says it has failed is about to end, with the reason in full.
    let settled = tokio::time::timeout(Duration::from_secs(1), first_end(part.children()));
    match (&fault, settled.await) {
        (Fault::Failed { .. }, Ok(exit)) if exit.fatal.is_some() => Fault::Ended(Box::new(exit)),
        _ => fault,
    }
}

/// Waits until the first of `children` ends; for ever when there are none.
async fn first_end(children: &[Child]) -> Exit {
    let mut ends: Vec<_> = children
        .iter()
        .map(|child| Box::pin(child.wait()))
        .collect();
    std::future::poll_fn(|context| {
        for end in &mut ends {
            if let std::task::Poll::Ready(exit) = end.as_mut().poll(context) {
                return std::task::Poll::Ready(exit);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn all_ended(children: &[Child]) {
    for child in children {
        child.wait().await;
    }
}
