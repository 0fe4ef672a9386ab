//! Time that a thread has computed. Time on a clock also counts what other work of the machine takes, and a grammar must
//! not be refused because a server is busy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Computing time of a thread since it called [`WorkClock::start`]; time on a clock where the system does not tell it.
#[derive(Clone, Default)]
pub struct WorkClock(Arc<OnceLock<Start>>);

struct Start {
    at: Instant,
    /// Its file of times, and its computing time at the start.
    of_thread: Option<(PathBuf, Duration)>,
}

impl WorkClock {
    /// Starts the clock of the calling thread.
    pub fn start(&self) {
        let times = std::fs::read_link("/proc/thread-self")
            .map(|task| PathBuf::from("/proc").join(task).join("schedstat"));
        let _ = self.0.set(Start {
            at: Instant::now(),
            of_thread: times.ok().and_then(|times| {
                let now = computed(&times)?;
                Some((times, now))
            }),
        });
    }

    /// Computing time of the thread so far; zero before its start.
    pub fn elapsed(&self) -> Duration {
        let Some(start) = self.0.get() else {
            return Duration::ZERO;
        };
        let computed = start
            .of_thread
            .as_ref()
            .and_then(|(times, before)| computed(times)?.checked_sub(*before));
        computed.unwrap_or_else(|| start.at.elapsed())
    }
}

/// Computing time of a thread, from its file `schedstat`, whose first number is in nanoseconds.
fn computed(times: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(times).ok()?;
    let number = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(number))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_computing_counts() {
        let clock = WorkClock::default();
        assert_eq!(clock.elapsed(), Duration::ZERO);
        let (ask, asked) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel::<Duration>();
        let of_thread = clock.clone();
        let worker = thread::spawn(move || {
            of_thread.start();
            thread::sleep(Duration::from_millis(200));
            done.send(of_thread.elapsed()).unwrap();
            let begun = Instant::now();
            let mut sum = 0u64;
            while of_thread.elapsed() < Duration::from_millis(50) {
                for number in 0..100_000u64 {
                    sum = std::hint::black_box(sum.wrapping_add(number));
                }
                assert!(begun.elapsed() < Duration::from_secs(60));
            }
            done.send(of_thread.elapsed()).unwrap();
            let _ = asked.recv();
        });
        assert!(ended.recv().unwrap() < Duration::from_millis(100));
        assert!(ended.recv().unwrap() >= Duration::from_millis(50));
        assert!(clock.elapsed() >= Duration::from_millis(50));
        drop(ask);
        worker.join().unwrap();
    }
}
