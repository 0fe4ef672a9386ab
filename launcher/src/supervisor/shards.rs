//! The group of shards: all ranks live and die together.

use std::time::{Duration, Instant};

use super::Fault;
use super::unit::Unit;
use crate::error::LauncherError;
use crate::logs::Log;
use crate::process::Child;
use crate::readiness::{Answer, Board, ShardProbe};
use crate::settings::Settings;
use crate::sockets::{Sockets, free_port};

const ASK_EVERY_STARTING: Duration = Duration::from_millis(50);
const ASK_EVERY_RUNNING: Duration = Duration::from_secs(2);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(10);

/// All ranks of the model.
pub struct ShardGroup<'a> {
    settings: &'a Settings,
    sockets: &'a Sockets,
    log: &'a Log,
    board: &'a Board,
    ranks: Vec<Child>,
    probes: Vec<ShardProbe>,
}

impl<'a> ShardGroup<'a> {
    pub fn new(
        settings: &'a Settings,
        sockets: &'a Sockets,
        log: &'a Log,
        board: &'a Board,
    ) -> Self {
        Self {
            settings,
            sockets,
            log,
            board,
            ranks: Vec::new(),
            probes: Vec::new(),
        }
    }

    fn by_rank(&self) -> impl Iterator<Item = (&str, &ShardProbe)> {
        let tags = self.ranks.iter().map(|child| child.tag.as_str());
        tags.zip(&self.probes)
    }
}

impl Unit for ShardGroup<'_> {
    fn name(&self) -> &'static str {
        if self.settings.placement.num_shard == 1 {
            "the shard"
        } else {
            "all shards"
        }
    }

    fn consequence(&self) -> &'static str {
        "running requests go on after that"
    }

    fn start(&mut self) -> Result<(), LauncherError> {
        self.sockets.remove_stale();
        let port = match self.settings.cli.processes.master_port {
            Some(port) => port,
            None => free_port().map_err(LauncherError::MasterPort)?,
        };
        for rank in 0..self.settings.placement.num_shard {
            let spec = self.settings.shard_command(rank, self.sockets, port);
            let probe = ShardProbe::new(&self.sockets.path(rank)).map_err(|error| {
                LauncherError::Spawn {
                    tag: spec.tag.clone(),
                    program: spec.program.join(" "),
                    source: std::io::Error::other(error),
                }
            })?;
            self.probes.push(probe);
            self.ranks.push(Child::start(&spec, self.log)?);
        }
        Ok(())
    }

    fn children(&self) -> &[Child] {
        &self.ranks
    }

    fn clear(&mut self) {
        self.ranks.clear();
        self.probes.clear();
        self.sockets.remove_stale();
    }

    async fn ready(&self) -> Result<(), Fault> {
        let seconds = self.settings.cli.processes.startup_timeout;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let mut all_ready = true;
            for (tag, probe) in self.by_rank() {
                let answer = probe.ask(ASK_TIMEOUT).await;
                self.board.note(tag, &answer);
                all_ready &= answer == Answer::Ready;
                if let Answer::Failed(message) = answer {
                    return Err(failed(tag, message));
                }
            }
            if all_ready {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Fault::NotReady {
                    seconds,
                    states: self.board.describe(),
                });
            }
            tokio::time::sleep(ASK_EVERY_STARTING).await;
        }
    }

    async fn watch(&self) -> Fault {
        let hang_timeout = Duration::from_secs(self.settings.cli.processes.shard_hang_timeout);
        let mut answered_at = vec![Instant::now(); self.ranks.len()];
        loop {
            tokio::time::sleep(ASK_EVERY_RUNNING.min(hang_timeout / 4)).await;
            for ((tag, probe), answered_at) in self.by_rank().zip(&mut answered_at) {
                match probe.ask(ASK_TIMEOUT.min(hang_timeout)).await {
                    Answer::Failed(message) => return failed(tag, message),
                    Answer::Silent | Answer::Unreachable => {
                        if answered_at.elapsed() >= hang_timeout {
                            return Fault::Hung {
                                tag: tag.to_owned(),
                                seconds: hang_timeout.as_secs(),
                            };
                        }
                    }
                    Answer::Ready | Answer::Busy(_) => *answered_at = Instant::now(),
                }
            }
        }
    }

    fn grace(&self) -> Duration {
        GRACE
    }
}

fn failed(tag: &str, message: String) -> Fault {
    Fault::Failed {
        tag: tag.to_owned(),
        message,
    }
}
