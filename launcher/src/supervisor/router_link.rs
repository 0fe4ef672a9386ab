//! The socket over which the launcher checks the router's health, and tells it about the shards.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, watch};

const ASK_EVERY: Duration = Duration::from_secs(1);
/// Number of late reports in a row after which a task of the router counts as stopped.
const LATE_REPORTS: u32 = 3;

/// A step that the router has waited for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    pub reason: String,
    pub since: Instant,
}

/// State that the supervisors of router and shards share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Notes {
    /// Overdue step; set from the router's reports.
    pub hang: watch::Sender<Option<Hang>>,
    /// Trouble of a shard, for `/health`; set by the launcher.
    pub trouble: watch::Sender<Option<String>>,
    /// Reason why everything ends; set by the launcher.
    pub ends: watch::Sender<Option<String>>,
    /// True if the router knows that everything ends; set from its answers.
    pub knows: watch::Sender<bool>,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            hang: watch::channel(None).0,
            trouble: watch::channel(None).0,
            ends: watch::channel(None).0,
            knows: watch::channel(false).0,
        }
    }
}

#[derive(Debug, Serialize)]
struct Question {
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<String>,
}

/// Answer of the router.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    hang: Option<String>,
    hang_ms: u64,
    silent_ms: u64,
}

/// The launcher's end of the socket.
#[derive(Debug)]
pub struct RouterLink {
    to: OwnedWriteHalf,
    from: Lines<BufReader<OwnedReadHalf>>,
}

impl RouterLink {
    /// Returns the link, and the router's stdin. Must be called inside the runtime.
    pub fn pair() -> io::Result<(Mutex<Self>, OwnedFd)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (from, to) = UnixStream::from_std(ours)?.into_split();
        let link = Self {
            to,
            from: BufReader::new(from).lines(),
        };
        Ok((Mutex::new(link), theirs.into()))
    }

    /// Asks until no answer has come for `limit`; returns the length of the silence.
    pub async fn until_silent(&mut self, limit: Duration, notes: &Notes) -> io::Result<Duration> {
        let mut times_late = 0;
        loop {
            let shards = notes.trouble.borrow().clone();
            let ends = notes.ends.borrow().clone();
            let is_told = ends.is_some();
            let mut line = serde_json::to_vec(&Question { shards, ends })?;
            line.push(b'\n');
            self.to.write_all(&line).await?;
            // The wait is counted in pieces, so that a pause of this process does not count.
            let mut silent = Duration::ZERO;
            let answer = loop {
                let piece = ASK_EVERY.min(limit);
                match tokio::time::timeout(piece, self.from.next_line()).await {
                    Ok(answer) => break answer?.ok_or(io::ErrorKind::UnexpectedEof)?,
                    Err(_) => silent += piece,
                }
                if silent >= limit {
                    return Ok(silent);
                }
            };
            notes.knows.send_replace(is_told);
            let report: Report = serde_json::from_str(&answer).unwrap_or_default();
            let silent = Duration::from_millis(report.silent_ms);
            // One late report may come from a pause of the whole machine.
            times_late = if silent >= limit { times_late + 1 } else { 0 };
            if times_late == LATE_REPORTS {
                return Ok(silent);
            }
            let since = Instant::now().checked_sub(Duration::from_millis(report.hang_ms));
            let hang = report.hang.zip(since);
            notes
                .hang
                .send_replace(hang.map(|(reason, since)| Hang { reason, since }));
            let mut ends = notes.ends.subscribe();
            let told = ends.wait_for(|ends| ends.is_some() && !is_told);
            // The next question goes out at once when everything ends.
            let _ = tokio::time::timeout(ASK_EVERY, told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hang_is_noted_and_silence_is_told() {
        let (link, theirs) = RouterLink::pair().unwrap();
        let theirs = std::os::unix::net::UnixStream::from(theirs);
        theirs.set_nonblocking(true).unwrap();
        let (from, mut to) = UnixStream::from_std(theirs).unwrap().into_split();
        let mut questions = BufReader::new(from).lines();
        let notes = Notes::default();
        notes.trouble.send_replace(Some("shard-1".to_owned()));
        let router = async {
            let asked = questions.next_line().await.unwrap().unwrap();
            assert_eq!(asked, r#"{"shards":"shard-1"}"#);
            to.write_all(b"{\"hang\":\"a step\",\"hang_ms\":5,\"silent_ms\":0}\n")
                .await
                .unwrap();
            questions.next_line().await.unwrap();
        };
        let limit = Duration::from_millis(300);
        let mut link = link.lock().await;
        let (silent, ()) = tokio::join!(link.until_silent(limit, &notes), router);
        assert_eq!(silent.unwrap(), limit);
        let hang = notes.hang.borrow().clone().unwrap();
        assert_eq!(hang.reason, "a step");
        drop((questions, to));
        assert!(link.until_silent(limit, &notes).await.is_err());
    }
}
