//! Reports the router's health to the launcher, and receives that of the shards, over a socket inherited at the start.
//!
//! The socket has no name that could be removed, and no client can block the answers to the launcher. It is one
//! end of a pair, which the launcher passes as stdin. Each question is a line of JSON ([`Question`]), and so is
//! the answer ([`Report`]). The threads that serve clients answer, so that a router whose threads are all stuck is
//! silent.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gridwork_engine::Vitals;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A question of the launcher.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Question {
    /// Fault of a shard that the launcher knows of, for people to read; absent if there is none.
    shards: Option<String>,
    /// Reason why the server ends; absent if it does not.
    ends: Option<String>,
}

/// The answer to the launcher.
#[derive(Debug, Serialize)]
struct Report {
    /// Shard that does not answer, for people to read.
    hang: Option<String>,
    /// Time since that was noticed.
    hang_ms: u64,
    /// Time since a task that should run every second has run.
    silent_ms: u64,
}

/// Health of the shards. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Supervision {
    /// Health reported by the tasks that drive a shard, once they exist.
    vitals: Arc<OnceLock<Vec<Arc<Vitals>>>>,
    /// Health of the shards as reported by the launcher.
    told: Arc<Mutex<Option<String>>>,
}

impl Supervision {
    /// Includes these tasks in the reports.
    pub fn include(&self, vitals: Vec<Arc<Vitals>>) {
        // This is called once.
        let _ = self.vitals.set(vitals);
    }

    fn vitals(&self) -> impl Iterator<Item = &Arc<Vitals>> {
        self.vitals.get().into_iter().flatten()
    }

    /// Returns why requests are not answered now: a hung shard, as noticed by router or launcher.
    pub fn trouble(&self) -> Option<String> {
        let hang = self.vitals().find_map(|vitals| vitals.hang());
        if let Some(hang) = hang {
            return Some(hang.reason);
        }
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Answers the launcher at the other end of stdin until it closes.
    pub fn answer_at_stdin(&self) -> io::Result<()> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let supervision = self.clone();
        tokio::spawn(async move {
            // Stdin is closed when the launcher has ended. This process then ends too.
            if let Err(error) = supervision.answer(socket).await {
                tracing::debug!("lost the launcher: {error}");
            }
        });
        Ok(())
    }

    async fn answer(&self, socket: UnixStream) -> io::Result<()> {
        let (from, mut to) = socket.into_split();
        let mut lines = BufReader::new(from).lines();
        while let Some(line) = lines.next_line().await? {
            let question: Question = serde_json::from_str(&line).unwrap_or_default();
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = question.shards;
            if let Some(reason) = question.ends {
                for vitals in self.vitals() {
                    vitals.give_up(reason.clone());
                }
            }
            let mut report = serde_json::to_vec(&self.report())?;
            report.push(b'\n');
            to.write_all(&report).await?;
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let hang = self.vitals().find_map(|vitals| vitals.hang());
        let silent = self.vitals().map(|vitals| vitals.silent_for());
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Report {
            hang_ms: hang.as_ref().map_or(0, |hang| ms(hang.since.elapsed())),
            hang: hang.map(|hang| hang.reason),
            silent_ms: ms(silent.max().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_question_is_answered_and_its_news_are_kept() {
        let supervision = Supervision::default();
        supervision.include(vec![Arc::default()]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answering = tokio::spawn({
            let supervision = supervision.clone();
            async move { supervision.answer(theirs).await }
        });
        let (from, mut to) = ours.into_split();
        let mut answers = BufReader::new(from).lines();
        for (question, trouble) in [
            ("{}\n", None),
            (
                "{\"shards\": \"shard-1 is silent\"}\n",
                Some("shard-1 is silent"),
            ),
            ("no JSON\n", None),
        ] {
            to.write_all(question.as_bytes()).await.unwrap();
            let answer = answers.next_line().await.unwrap().unwrap();
            assert_eq!(answer, r#"{"hang":null,"hang_ms":0,"silent_ms":0}"#);
            assert_eq!(supervision.trouble().as_deref(), trouble);
        }
        drop((answers, to));
        answering.await.unwrap().unwrap();
    }
}
