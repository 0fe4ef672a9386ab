//! Reaps processes that nobody waits for.
//!
//! The launcher is often process 1 of a container, and otherwise asks the kernel to be what process 1 would be
//! (`PR_SET_CHILD_SUBREAPER`): processes whose parents have ended become its children. Those that end stay in the table of
//! processes until it waits for them.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Wait before looking again when a child that has ended is still to be waited for by its own task.
const RETRY: Duration = Duration::from_millis(50);

/// Children that a task waits for. The table of processes is one for the whole program, and so is this.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Notes a child that is waited for elsewhere. Must be called before the thread that reaps can run again.
pub fn is_waited_for(pid: i32) {
    children().insert(pid);
}

/// Notes that a child has been waited for.
pub fn was_waited_for(pid: i32) {
    children().remove(&pid);
}

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Becomes the parent of orphans, and starts a task on this thread that reaps them. Must be called inside the runtime.
pub fn reap() -> io::Result<()> {
    // SAFETY: plain system call.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            while let Some(pid) = next_ended() {
                if children().contains(&pid) {
                    tokio::time::sleep(RETRY).await;
                } else {
                    wait_for(pid);
                }
            }
        }
    });
    Ok(())
}

/// A child that has ended and has not been waited for.
fn next_ended() -> Option<i32> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all-zero bytes are a valid value, which the call overwrites.
    let (found, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(libc::P_ALL, 0, &mut info, options), info)
    };
    // SAFETY: the call has filled the fields of a child, or left zero.
    let pid = unsafe { info.si_pid() };
    (found == 0 && pid > 0).then_some(pid)
}

fn wait_for(pid: i32) {
    // SAFETY: plain system call; the status is not wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}
