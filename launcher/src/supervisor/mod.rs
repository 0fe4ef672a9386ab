//! Starts router and shards at once, reports when they are ready, keeps them running, and ends them in order.

mod backoff;
mod common;
mod fault;
mod readiness;
mod router;
mod router_link;
mod served;
mod shards;
mod supervised;

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::launch::LaunchPlan;
use crate::logs::Log;
use crate::process::parent::Event;
use crate::process::signals::{Request, Signals};
use crate::process::sockets::Sockets;
use readiness::StartupReport;

pub use backoff::Backoff;
use common::Common;
pub use fault::SupervisorError;
pub use readiness::{Answer, RouterProbe};
use router::Router;
use router_link::Notes;
use served::Served;
use shards::ShardGroup;
use supervised::{Stop, Supervisor};

/// Maximum wait for killed processes.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// Time for the router to learn that no shard will come back, and then to answer its clients.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// Runs the router and the shards until a signal ends them or they cannot be kept running.
///
/// Must be called on the main thread (see [`crate::process`]). `began` is the time of the command.
pub async fn run(
    plan: &LaunchPlan,
    sockets: &Sockets,
    log: &Log,
    signals: &mut Signals,
    began: Instant,
) -> Result<(), SupervisorError> {
    let report = StartupReport::new(log.clone());
    let startup_timeout = Duration::from_secs(plan.cli.timeouts.startup_timeout);
    let probe = RouterProbe::of(&plan.cli.http);
    let url = probe.url();
    let served = Served::new(probe.clone());
    let supervisor = |stop| Supervisor {
        log: log.clone(),
        served: served.clone(),
        stop,
        max_restarts: plan.cli.processes.max_restarts,
    };
    let (stop_router, router_stop) = watch::channel(Stop::No);
    let (stop_shards, shards_stop) = watch::channel(Stop::No);
    let (router_ready, mut router_is_ready) = watch::channel(false);
    let (shards_ready, mut shards_are_ready) = watch::channel(false);
    let notes = Notes::default();
    let common = Common {
        plan,
        sockets,
        log,
        report: &report,
        notes: notes.clone(),
    };
    let router = Router::new(common.clone(), probe);
    let shards = ShardGroup::new(common);
    let router_life = supervisor(router_stop).supervise(router, router_ready);
    let shards_life = supervisor(shards_stop).supervise(shards, shards_ready);
    tokio::pin!(router_life, shards_life);

    let all_ready = async {
        // An error means that a supervisor has returned, which the loop below handles.
        let shards = shards_are_ready.wait_for(|ready| *ready).await.is_ok();
        let router = router_is_ready.wait_for(|ready| *ready).await.is_ok();
        if !(shards && router) {
            std::future::pending::<()>().await;
        }
    };
    // The time counts from here: a download may take long.
    let deadline = tokio::time::sleep(startup_timeout);
    tokio::pin!(all_ready, deadline);
    let mut remind = tokio::time::interval(Duration::from_secs(1));
    let (mut waiting, mut stopping) = (true, false);
    let (mut router_ended, mut shards_ended) = (false, false);
    let failure = loop {
        if router_ended && shards_ended {
            return Ok(());
        }
        tokio::select! {
            result = &mut shards_life, if !shards_ended => {
                shards_ended = true;
                if let Err(error) = result {
                    break error;
                }
            }
            result = &mut router_life, if !router_ended => {
                router_ended = true;
                if let Err(error) = result {
                    break error;
                }
                stop_shards.send_replace(Stop::Gracefully);
            }
            () = &mut all_ready, if waiting => {
                waiting = false;
                served.note();
                let seconds = began.elapsed().as_secs_f64();
                log.info(format!("{} is ready at {url} after {seconds:.1} s", plan.model_id));
                if let Some(socket) = &plan.cli.http.uds {
                    signals.teller().tell(&Event::Ready {
                        socket,
                        model_id: &plan.model_id,
                        model_path: &plan.model_path,
                    });
                }
            }
            () = &mut deadline, if waiting && !stopping && !served.noted() => {
                break SupervisorError::StartupTimeout {
                    seconds: startup_timeout.as_secs(),
                    states: report.describe(),
                };
            }
            _ = remind.tick(), if waiting && !stopping => report.remind(),
            request = signals.next() => match request {
                Request::Interrupt if stopping => break SupervisorError::Interrupted,
                _ if stopping => log.info("already ending; press Ctrl-C once more to drop running requests"),
                request => {
                    stopping = true;
                    if !served.ask().await {
                        log.info(format!("{request}: ending"));
                        stop_shards.send_replace(Stop::Gracefully);
                    } else {
                        let seconds = plan.cli.http.graceful_termination_timeout;
                        log.info(format!("{request}: ending, running requests are given {seconds} s"));
                    }
                    stop_router.send_replace(Stop::Gracefully);
                }
            },
        }
    };
    if !router_ended && !matches!(failure, SupervisorError::Interrupted) && served.ask().await {
        notes.ends.send_replace(Some(failure.to_string()));
        let mut knows = notes.knows.subscribe();
        let told = async {
            tokio::select! {
                _ = knows.wait_for(|knows| *knows) => false,
                _ = &mut router_life => true,
            }
        };
        router_ended = tokio::time::timeout(LAST_ANSWERS, told).await == Ok(true);
    }
    if !router_ended && *notes.knows.borrow() {
        stop_router.send_replace(Stop::Gracefully);
        router_ended = tokio::time::timeout(LAST_ANSWERS, &mut router_life)
            .await
            .is_ok();
    }
    stop_router.send_replace(Stop::Now);
    stop_shards.send_replace(Stop::Now);
    let all_ended = async {
        if !router_ended {
            let _ = router_life.await;
        }
        if !shards_ended {
            let _ = shards_life.await;
        }
    };
    let _ = tokio::time::timeout(KILL_WAIT, all_ended).await;
    Err(failure)
}
