//! One part and its lives: started, waited for, watched, and started again when it ends.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Backoff, Fault, Served};
use crate::error::LauncherError;
use crate::logs::Log;
use crate::process::{Child, Exit};

/// Between SIGTERM and SIGKILL, before anything was served.
const GRACE_WHILE_STARTING: Duration = Duration::from_secs(2);

/// Whether and how a part is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    No,
    Gracefully,
    Now,
}

/// Something that is started, watched and restarted as a whole: the router, or the group of shards.
pub trait Unit {
    /// For the log.
    fn name(&self) -> &'static str;
    /// What its end means for requests, for the log.
    fn consequence(&self) -> &'static str;
    /// Starts its processes.
    fn start(&mut self) -> Result<(), LauncherError>;
    /// Its running processes.
    fn children(&self) -> &[Child];
    /// Forgets its processes, killing those that still run.
    fn clear(&mut self);
    /// Waits until it is ready. Its processes' end is seen by others.
    async fn ready(&self) -> Result<(), Fault>;
    /// Looks for what is wrong though its processes run.
    async fn watch(&self) -> Fault;
    /// How long its processes are given between SIGTERM and SIGKILL.
    fn grace(&self) -> Duration;
}

/// Keeps one unit running.
pub struct Keeper {
    pub log: Log,
    /// Whether anything has been served: before that, any fault ends the launcher.
    pub served: Served,
    pub stop: watch::Receiver<Stop>,
    /// Restarts in a row without becoming ready, before giving up.
    pub max_restarts: u32,
}

impl Keeper {
    /// Runs `unit` until it is told to stop, or cannot be kept running. No process of it is left when this returns.
    pub async fn keep(
        mut self,
        mut unit: impl Unit,
        is_ready: watch::Sender<bool>,
    ) -> Result<(), LauncherError> {
        let mut backoff = Backoff::default();
        let mut failed_restarts = 0;
        let mut restarting = false;
        loop {
            let began = Instant::now();
            let mut ready_at = None;
            let mut stop = self.stop.clone();
            let name = unit.name();
            let fault = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop != Stop::No) => None,
                fault = live(&mut unit, || {
                    ready_at = Some(Instant::now());
                    is_ready.send_replace(true);
                    if restarting {
                        let seconds = began.elapsed().as_secs_f64();
                        self.log.info(format!("{name}: ready again after {seconds:.1} s"));
                    }
                }) => Some(fault),
            };
            let Some(fault) = fault else {
                self.end(&mut unit).await;
                return Ok(());
            };
            is_ready.send_replace(false);
            self.kill_rest(&mut unit, &fault).await;
            if !self.served.ask().await {
                return Err(LauncherError::Fault(fault));
            }
            if ready_at.is_some() {
                failed_restarts = 0;
            } else {
                failed_restarts += 1;
            }
            if failed_restarts >= self.max_restarts.max(1) {
                return Err(LauncherError::GaveUp {
                    name: name.to_owned(),
                    restarts: failed_restarts,
                    last: fault,
                });
            }
            let pause = backoff.pause_after(ready_at.map_or(Duration::ZERO, |at| at.elapsed()));
            self.log.error(format!(
                "{fault}. Starting {name} again in {} s; {}",
                pause.as_secs_f64(),
                unit.consequence()
            ));
            restarting = true;
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ends the unit as it was told to.
    async fn end(&mut self, unit: &mut impl Unit) {
        for child in unit.children() {
            child.terminate();
        }
        // Before anything was served there is nothing to finish, and loading may not notice a signal.
        let grace = match self.served.noted() {
            true => unit.grace(),
            false => GRACE_WHILE_STARTING,
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop == Stop::Now) => {}
            () = tokio::time::sleep(grace) => {
                let name = unit.name();
                self.log.warn(format!("{name} did not end in time and is killed"));
            }
            () = all_ended(unit.children()) => {}
        }
        for child in unit.children() {
            child.kill();
        }
        all_ended(unit.children()).await;
        for exit in unit.children().iter().filter_map(Child::ended) {
            self.show_held_back(&exit);
        }
        unit.clear();
    }

    /// After a fault: what still runs of the unit is of no use.
    async fn kill_rest(&self, unit: &mut impl Unit, fault: &Fault) {
        for child in unit.children() {
            child.kill();
        }
        all_ended(unit.children()).await;
        for exit in unit.children().iter().filter_map(Child::ended) {
            match fault {
                // Told by whoever reports the fault.
                Fault::Ended(cause) if cause.tag == exit.tag => {}
                _ => self.show_held_back(&exit),
            }
        }
        unit.clear();
    }

    fn show_held_back(&self, exit: &Exit) {
        if let Some(record) = &exit.fatal {
            self.log.held_back(&exit.tag, record);
        }
    }
}

/// One life of a unit, from its start to what ended it.
async fn live(unit: &mut impl Unit, on_ready: impl FnOnce()) -> Fault {
    if let Err(error) = unit.start() {
        return Fault::NotStarted(Box::new(error));
    }
    let fault = tokio::select! {
        biased;
        exit = first_end(unit.children()) => return Fault::Ended(Box::new(exit)),
        fault = async {
            match unit.ready().await {
                Ok(()) => {
                    on_ready();
                    unit.watch().await
                }
                Err(fault) => fault,
            }
        } => fault,
    };
    // A process that says it has failed is about to end, with the reason in full.
    let settled = tokio::time::timeout(Duration::from_secs(1), first_end(unit.children()));
    match (&fault, settled.await) {
        (Fault::Failed { .. }, Ok(exit)) if exit.fatal.is_some() => Fault::Ended(Box::new(exit)),
        _ => fault,
    }
}

/// Waits for the first of `children` to end; for ever when there are none.
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
