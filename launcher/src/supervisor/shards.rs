//! The group of shards: all ranks live and die together.

use std::time::{Duration, Instant};

use gridwork_settings::Device;

use super::common::Common;
use super::fault::{Fault, StartError};
use super::readiness::{Answer, ShardProbe};
use super::router_link::Hang;
use super::supervised::Supervised;
use crate::process::Child;
use crate::process::sockets::{Meeting, SocketError, free_port};

const ASK_EVERY_STARTING: Duration = Duration::from_millis(50);
const ASK_EVERY_RUNNING: Duration = Duration::from_secs(2);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence of a shard after which `/health` reports it.
const TELL_AFTER: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(10);

/// The processes of all ranks.
pub struct ShardGroup<'a> {
    common: Common<'a>,
    ranks: Vec<Child>,
    probes: Vec<ShardProbe>,
}

impl<'a> ShardGroup<'a> {
    pub fn new(common: Common<'a>) -> Self {
        Self {
            common,
            ranks: Vec::new(),
            probes: Vec::new(),
        }
    }

    /// Chooses where ranks meet: in a file if all ranks use this machine's memory, at a port for GPUs, whose library
    /// keeps asking.
    fn meeting(&self) -> Result<Meeting, SocketError> {
        let processes = &self.common.plan.cli.processes;
        let is_here = matches!(
            processes.master_addr.as_str(),
            "127.0.0.1" | "localhost" | "::1"
        );
        match processes.master_port {
            Some(port) => Ok(Meeting::Port(port)),
            None if is_here && self.common.plan.placement.device == Device::Cpu => {
                let file = self.common.sockets.meeting_file();
                file.map(Meeting::File).map_err(SocketError::MeetingFile)
            }
            None => free_port()
                .map(Meeting::Port)
                .map_err(SocketError::MasterPort),
        }
    }

    /// Checks all ranks and their sockets until one is silent for too long or cannot be reached any more.
    async fn first_silent(&self) -> Fault {
        let hang_timeout = Duration::from_secs(self.common.plan.cli.processes.shard_hang_timeout);
        let mut silences = vec![Silence::default(); self.ranks.len()];
        self.common.notes.trouble.send_replace(None);
        loop {
            tokio::time::sleep(ASK_EVERY_RUNNING.min(hang_timeout / 4)).await;
            let mut trouble = None;
            for (rank, (tag, probe)) in (0..).zip(self.by_rank()) {
                match self.common.sockets.put_back(rank) {
                    Ok(false) => {}
                    Ok(true) => {
                        let path = self.common.sockets.path(rank);
                        let path = path.display();
                        self.common.log.warn(format!(
                            "{tag}: its socket {path} was removed, and is put back"
                        ));
                    }
                    Err(source) => {
                        return Fault::SocketLost {
                            tag: tag.to_owned(),
                            path: self.common.sockets.path(rank),
                            source,
                        };
                    }
                }
                let silence = &mut silences[rank as usize];
                match probe.ask(ASK_TIMEOUT.min(hang_timeout)).await {
                    Answer::Failed(message) => return failed(tag, message),
                    Answer::Silent | Answer::Unreachable => {
                        let silent = silence.goes_on();
                        if silent >= hang_timeout {
                            return Fault::Hung {
                                tag: tag.to_owned(),
                                seconds: hang_timeout.as_secs(),
                                flag: "--shard-hang-timeout",
                            };
                        }
                        if silent >= TELL_AFTER {
                            let seconds = silent.as_secs();
                            trouble = Some(format!("{tag} has not answered for {seconds} s"));
                        }
                    }
                    Answer::Ready | Answer::Busy(_) => *silence = Silence::default(),
                }
            }
            if *self.common.notes.trouble.borrow() != trouble {
                self.common.notes.trouble.send_replace(trouble);
            }
        }
    }

    /// Waits until the router reports an overdue step of these shards.
    async fn first_overdue(&self) -> Fault {
        let ready_at = Instant::now();
        let mut hangs = self.common.notes.hang.subscribe();
        // Reports about the previous group are old.
        let of_these = |hang: &Hang| hang.since > ready_at;
        let hang = hangs.wait_for(|hang| hang.as_ref().is_some_and(of_these));
        match hang.await.as_deref() {
            Ok(Some(hang)) => Fault::Overdue(hang.reason.clone()),
            // The sender is a field of `self`, so the channel stays open.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Keeps a second name of each socket, so that it can be put back.
    fn keep_sockets(&self) {
        for rank in 0..self.common.plan.placement.num_shard {
            if let Err(error) = self.common.sockets.keep(rank) {
                let path = self.common.sockets.path(rank);
                let path = path.display();
                self.common.log.debug(format!(
                    "{path} cannot be put back if it is removed: {error}"
                ));
            }
        }
    }

    fn by_rank(&self) -> impl Iterator<Item = (&str, &ShardProbe)> {
        let tags = self.ranks.iter().map(|child| child.tag.as_str());
        tags.zip(&self.probes)
    }
}

/// Time that a shard has been silent for.
#[derive(Debug, Clone)]
struct Silence {
    seen: Duration,
    looked_at: Instant,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            seen: Duration::ZERO,
            looked_at: Instant::now(),
        }
    }
}

impl Silence {
    /// Adds the time since the last call, except a pause of this process (SIGSTOP, a frozen container).
    fn goes_on(&mut self) -> Duration {
        let passed = self.looked_at.elapsed();
        self.looked_at = Instant::now();
        self.seen += passed.min(2 * (ASK_EVERY_RUNNING + ASK_TIMEOUT));
        self.seen
    }
}

impl Supervised for ShardGroup<'_> {
    fn name(&self) -> &'static str {
        if self.common.plan.placement.num_shard == 1 {
            "the shard"
        } else {
            "all shards"
        }
    }

    fn consequence(&self) -> &'static str {
        "running requests go on after that"
    }

    fn start(&mut self) -> Result<(), StartError> {
        self.common
            .sockets
            .make_folder()
            .map_err(|source| SocketError::Folder {
                folder: self.common.sockets.path(0),
                source,
            })?;
        self.common.sockets.remove_stale();
        let meeting = self.meeting()?;
        for rank in 0..self.common.plan.placement.num_shard {
            let spec = self
                .common
                .plan
                .shard_command(rank, self.common.sockets, &meeting);
            let path = self.common.sockets.path(rank);
            let probe = ShardProbe::new(&path).map_err(|error| SocketError::NoAddress {
                reason: error.to_string(),
                path,
            })?;
            self.probes.push(probe);
            self.ranks.push(Child::start(&spec, self.common.log)?);
        }
        Ok(())
    }

    fn children(&self) -> &[Child] {
        &self.ranks
    }

    fn clear(&mut self) {
        self.ranks.clear();
        self.probes.clear();
        self.common.sockets.remove_stale();
    }

    async fn ready(&self) -> Result<(), Fault> {
        let seconds = self.common.plan.cli.timeouts.startup_timeout;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let mut all_ready = true;
            for (tag, probe) in self.by_rank() {
                let answer = probe.ask(ASK_TIMEOUT).await;
                self.common.report.note(tag, &answer);
                all_ready &= answer == Answer::Ready;
                if let Answer::Failed(message) = answer {
                    return Err(failed(tag, message));
                }
            }
            if all_ready {
                self.keep_sockets();
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Fault::NotReady {
                    seconds,
                    states: self.common.report.describe(),
                });
            }
            tokio::time::sleep(ASK_EVERY_STARTING).await;
        }
    }

    async fn watch(&self) -> Fault {
        tokio::select! {
            fault = self.first_silent() => fault,
            fault = self.first_overdue() => fault,
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
