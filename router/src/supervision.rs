//! Health reports to the launcher, over the socket that the router was started with, and news of the shards from it.
//!
//! The socket is one end of a pair, which the launcher passes as stdin. It has no name that anybody could remove, and no
//! client can keep the launcher from being answered. For each line of JSON with a [`Question`] a line with a [`Report`]
//! goes back. The threads that serve clients write the reports, so a router whose threads are all stuck is silent.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gridwork_engine::Vitals;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Question of the launcher, with its news of the shards.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Question {
    /// Trouble of a shard, as a text for people; absent when the launcher knows of none.
    shards: Option<String>,
    /// Reason why launcher, router and shards end; absent while they run.
    ends: Option<String>,
}

/// Answer to the launcher.
#[derive(Debug, Serialize)]
struct Report {
    /// Shard that does not answer, as a text for people.
    hang: Option<String>,
    /// Time since that was noticed.
    hang_ms: u64,
    /// Time since the last run of a task that runs every second.
    silent_ms: u64,
}

/// State of the shards, as router and launcher know it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Supervision {
    /// Vital signs of the tasks that drive a shard, once there are any.
    vitals: Arc<OnceLock<Vec<Arc<Vitals>>>>,
    /// Trouble of a shard, from the launcher's last question.
    told: Arc<Mutex<Option<String>>>,
}

impl Supervision {
    /// Includes these tasks in the reports. To be called once.
    pub fn include(&self, vitals: Vec<Arc<Vitals>>) {
        let _ = self.vitals.set(vitals);
    }

    fn vitals(&self) -> impl Iterator<Item = &Arc<Vitals>> {
        self.vitals.get().into_iter().flatten()
    }

    /// Reason why requests are not answered now: a shard that hangs, as router or launcher know.
    pub fn trouble(&self) -> Option<String> {
        let hang = self.vitals().find_map(|vitals| vitals.hang());
        if let Some(hang) = hang {
            return Some(hang.reason);
        }
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }

    /// Answers the launcher at the other end of stdin until the connection is lost.
    pub fn answer_at_stdin(&self) -> io::Result<()> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let supervision = self.clone();
        tokio::spawn(async move {
            // The connection ends with the launcher, and so does this process.
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
