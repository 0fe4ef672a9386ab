//! The router, as the launcher sees it.

use std::time::Duration;

use super::Fault;
use super::unit::Unit;
use crate::error::LauncherError;
use crate::logs::Log;
use crate::process::Child;
use crate::readiness::{Answer, Board, RouterProbe};
use crate::settings::Settings;
use crate::sockets::Sockets;

const ASK_EVERY: Duration = Duration::from_millis(50);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The router ends by itself when its time to finish requests is up; it is killed this much later.
const EXTRA_GRACE: Duration = Duration::from_secs(5);

/// The one process that clients talk to.
pub struct Router<'a> {
    settings: &'a Settings,
    sockets: &'a Sockets,
    log: &'a Log,
    board: &'a Board,
    probe: RouterProbe,
    process: Vec<Child>,
}

impl<'a> Router<'a> {
    pub fn new(
        settings: &'a Settings,
        sockets: &'a Sockets,
        log: &'a Log,
        board: &'a Board,
        probe: RouterProbe,
    ) -> Self {
        Self {
            settings,
            sockets,
            log,
            board,
            probe,
            process: Vec::new(),
        }
    }
}

impl Unit for Router<'_> {
    fn name(&self) -> &'static str {
        "the router"
    }

    fn consequence(&self) -> &'static str {
        "the requests that it was serving are lost"
    }

    fn start(&mut self) -> Result<(), LauncherError> {
        let spec = self.settings.router_command(self.sockets);
        self.process = vec![Child::start(&spec, self.log)?];
        Ok(())
    }

    fn children(&self) -> &[Child] {
        &self.process
    }

    fn clear(&mut self) {
        self.process.clear();
    }

    /// Has no time-out of its own: the router is ready when the shards are, which have one.
    async fn ready(&self) -> Result<(), Fault> {
        loop {
            let answer = self.probe.ask(ASK_TIMEOUT).await;
            self.board.note("router", &answer);
            if answer == Answer::Ready {
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// It is not asked any more once it was ready: while shards are restarted it is rightly not healthy, and its end is seen.
    async fn watch(&self) -> Fault {
        std::future::pending().await
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(self.settings.cli.http.graceful_termination_timeout) + EXTRA_GRACE
    }
}
