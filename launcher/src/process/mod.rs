//! Child processes that cannot outlive the launcher.
//!
//! Each is the leader of a process group of its own, so that Ctrl-C in a terminal reaches the launcher alone, and asks
//! the kernel for SIGKILL when the launcher dies (`PR_SET_PDEATHSIG`). The kernel binds that to the thread that started
//! the child: children are started from the main thread, which the runtime of the launcher lives on.

pub mod hidden_keys;
pub mod http_socket;
pub mod orphans;
pub mod parent;
mod private_folder;
pub mod programs;
mod shard_environment;
pub mod signals;
pub mod sockets;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use gridwork_settings::Secret;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::logs::{Log, Output, Record, read_output};
pub use shard_environment::ShardEnvironment;

/// Maximum wait for the last output of a process that has ended. One of its helpers may hold the pipe open.
const LAST_OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// A child that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {tag} ({program}): {source}")]
pub struct ChildError {
    pub tag: String,
    pub program: String,
    pub source: io::Error,
}

/// Command that starts a child.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSpec {
    /// Name of the child in the log.
    pub tag: String,
    /// The program and its first arguments.
    pub program: Vec<String>,
    pub args: Vec<OsString>,
    /// JSON that the child reads from the file behind `--settings`.
    pub settings: Option<Secret>,
    /// Variables added to the launcher's own.
    pub env: Vec<(String, String)>,
    /// Variables removed from it.
    pub env_remove: Vec<&'static str>,
    /// Choice among the launcher's own variables; `None`: all.
    pub env_kept: Option<ShardEnvironment>,
}

/// End of a child process.
#[derive(Debug, Clone)]
pub struct Exit {
    pub tag: String,
    pub status: Option<ExitStatus>,
    /// Log line with the reason, not shown yet.
    pub fatal: Option<Record>,
    pub last_stdout_line: String,
    pub last_stderr_line: String,
}

impl Exit {
    /// Describes the end for people, with the child's own reason where it gave one.
    pub fn reason(&self) -> String {
        let tag = &self.tag;
        if let Some(record) = &self.fatal {
            return format!("{tag}: {}", record.message.trim());
        }
        let how = match self.status {
            Some(status) => match (status.code(), status.signal()) {
                (_, Some(libc::SIGKILL)) => {
                    return format!(
                        "{tag} was killed (SIGKILL); unless that was you, the machine ran out of memory"
                    );
                }
                (_, Some(signal)) => format!("was ended by signal {signal}"),
                (Some(code), _) => format!("ended with exit code {code}"),
                _ => "ended".to_owned(),
            },
            None => "was lost".to_owned(),
        };
        let printed = [&self.last_stderr_line, &self.last_stdout_line];
        let last = printed.into_iter().find(|line| !line.is_empty());
        let Some(last) = last.map(|line| line.trim()) else {
            return format!("{tag} {how} without saying why");
        };
        format!("{tag} {how}; its last line was: {last}")
    }
}

/// A running child. Dropping it kills it, and the helpers it has started.
#[derive(Debug)]
pub struct Child {
    pub tag: String,
    pid: i32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Child {
    /// Starts a child, whose output goes to `log`. Must be called on the main thread (see the module).
    pub fn start(spec: &CommandSpec, log: &Log) -> Result<Self, ChildError> {
        Self::start_with(spec, log, Stdio::null())
    }

    /// Does the same, with `stdin` for the child.
    pub fn start_with(spec: &CommandSpec, log: &Log, stdin: Stdio) -> Result<Self, ChildError> {
        let cannot = |source| ChildError {
            tag: spec.tag.clone(),
            program: spec.program.join(" "),
            source,
        };
        let settings = spec.settings.as_ref().map(|json| file_in_memory(&json.0));
        let settings = settings.transpose().map_err(cannot)?;
        let mut command = command(spec, settings.as_ref());
        let mut child = command.stdin(stdin).spawn().map_err(cannot)?;
        let tag = spec.tag.clone();
        let pid = child.id().map_or(0, |pid| pid as i32);
        orphans::is_waited_for(pid);
        let (stdout, stderr) = (Output::default(), Output::default());
        let mut readers: Vec<JoinHandle<()>> = Vec::new();
        if let Some(stream) = child.stdout.take() {
            let reader = read_output(stream, tag.clone(), log.clone(), stdout.clone());
            readers.push(tokio::spawn(reader));
        }
        if let Some(stream) = child.stderr.take() {
            let reader = read_output(stream, tag.clone(), log.clone(), stderr.clone());
            readers.push(tokio::spawn(reader));
        }
        let (ended, exit) = watch::channel(None);
        let exit_tag = tag.clone();
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            orphans::was_waited_for(pid);
            // Helpers of the child (compilers, loaders) end with it.
            signal_group(pid, libc::SIGKILL);
            let all_read = async {
                for reader in readers {
                    let _ = reader.await;
                }
            };
            let _ = tokio::time::timeout(LAST_OUTPUT_WAIT, all_read).await;
            ended.send_replace(Some(Exit {
                tag: exit_tag,
                status,
                fatal: stderr.take_fatal().or_else(|| stdout.take_fatal()),
                last_stdout_line: stdout.last_line(),
                last_stderr_line: stderr.last_line(),
            }));
        });
        Ok(Self { tag, pid, exit })
    }

    /// Waits until it has ended. May be called more than once.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = match exit.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        };
        ended.unwrap_or_else(|| Exit {
            tag: self.tag.clone(),
            status: None,
            fatal: None,
            last_stdout_line: String::new(),
            last_stderr_line: String::new(),
        })
    }

    /// Returns how it ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        if self.ended().is_none() && self.pid > 0 {
            // SAFETY: plain system call. The process has not been reported as ended, so the id is still its own.
            unsafe { libc::kill(self.pid, libc::SIGTERM) };
        }
    }

    /// Kills it and its helpers.
    pub fn kill(&self) {
        if self.ended().is_none() {
            signal_group(self.pid, libc::SIGKILL);
        }
    }

    /// Sends SIGTERM, and kills it if it still runs after `grace`.
    pub async fn stop(&self, grace: Duration) -> Exit {
        self.terminate();
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                self.kill();
                self.wait().await
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal_group(leader: i32, signal: i32) {
    if leader > 1 {
        // SAFETY: plain system call; a group that is gone gives an error that does not matter.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Makes a file with `text` that exists only in memory. Settings can hold keys, which must appear neither in
/// the list of processes, nor in an environment that a child passes on, nor on a disk.
fn file_in_memory(text: &str) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let descriptor =
        unsafe { libc::memfd_create(c"gridwork-settings".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    file.write_all(text.as_bytes())?;
    Ok(file)
}

/// `settings` is the file that the child inherits; it must stay open until the child has been started.
fn command(spec: &CommandSpec, settings: Option<&File>) -> Command {
    let (program, first_args) = match spec.program.split_first() {
        Some((program, rest)) => (program.as_str(), rest),
        None => ("", &[][..]),
    };
    let mut command = Command::new(program);
    if let Some(kept) = &spec.env_kept {
        let keeps = |name: &OsString| name.to_str().is_some_and(|name| kept.keeps(name));
        command.env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| keeps(name)));
    }
    command
        .args(first_args)
        .args(&spec.args)
        .args(settings.into_iter().flat_map(|file| {
            [
                "--settings".to_owned(),
                format!("/dev/fd/{}", file.as_raw_fd()),
            ]
        }))
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for name in &spec.env_remove {
        command.env_remove(name);
    }
    let settings = settings.map(File::as_raw_fd);
    // SAFETY: getpid always succeeds.
    let launcher = unsafe { libc::getpid() };
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(descriptor) = settings
                && libc::fcntl(descriptor, libc::F_SETFD, 0) != 0
            {
                return Err(io::Error::last_os_error());
            }
            // The launcher may have died between fork and prctl: nobody would send the signal any more.
            if libc::getppid() != launcher {
                libc::_exit(1);
            }
            Ok(())
        });
    }
    command
}
