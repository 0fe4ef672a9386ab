//! The router as a supervised part.

use std::time::Duration;

use tokio::sync::Mutex;

use super::common::Common;
use super::fault::{Fault, StartError};
use super::readiness::{Answer, RouterProbe};
use super::router_link::RouterLink;
use super::supervised::Supervised;
use crate::process::Child;

const ASK_EVERY: Duration = Duration::from_millis(50);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which the router is killed, beyond its time to finish requests: it ends by itself before.
const EXTRA_GRACE: Duration = Duration::from_secs(5);

/// The one process that clients talk to.
pub struct Router<'a> {
    common: Common<'a>,
    probe: RouterProbe,
    process: Vec<Child>,
    link: Option<Mutex<RouterLink>>,
}

impl<'a> Router<'a> {
    pub fn new(common: Common<'a>, probe: RouterProbe) -> Self {
        Self {
            common,
            probe,
            process: Vec::new(),
            link: None,
        }
    }

    /// Returns when the router has been silent for too long.
    async fn silence(&self) -> Fault {
        let limit = Duration::from_secs(self.common.plan.cli.processes.router_hang_timeout);
        if let Some(link) = &self.link
            && let Ok(silent) = link
                .lock()
                .await
                .until_silent(limit, &self.common.notes)
                .await
        {
            return Fault::Hung {
                tag: "router".to_owned(),
                seconds: silent.as_secs(),
                flag: "--router-hang-timeout",
            };
        }
        // The link has broken: the router ends, which is seen by others.
        std::future::pending().await
    }

    async fn healthy(&self) {
        loop {
            let answer = self.probe.ask(ASK_TIMEOUT).await;
            self.common.report.note("router", &answer);
            if answer == Answer::Ready {
                return;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

impl Supervised for Router<'_> {
    fn name(&self) -> &'static str {
        "the router"
    }

    fn consequence(&self) -> &'static str {
        "the requests that it was serving are lost"
    }

    fn start(&mut self) -> Result<(), StartError> {
        let spec = self.common.plan.router_command(self.common.sockets);
        let (link, stdin) = RouterLink::pair().map_err(StartError::RouterLink)?;
        self.link = Some(link);
        self.process = vec![Child::start_with(&spec, self.common.log, stdin.into())?];
        Ok(())
    }

    fn children(&self) -> &[Child] {
        &self.process
    }

    fn clear(&mut self) {
        self.process.clear();
        self.link = None;
        self.common.notes.hang.send_replace(None);
    }

    /// Has no timeout: the router is ready when the shards are, which have one.
    async fn ready(&self) -> Result<(), Fault> {
        tokio::select! {
            () = self.healthy() => Ok(()),
            fault = self.silence() => Err(fault),
        }
    }

    /// Does not ask for its health: while shards are restarted the router is rightly not healthy.
    async fn watch(&self) -> Fault {
        self.silence().await
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(self.common.plan.cli.http.graceful_termination_timeout) + EXTRA_GRACE
    }
}
