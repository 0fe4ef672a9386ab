//! The life of an engine or an encoder: connect to the shard, work, and connect again whenever the shard is lost.
//! Handles see it as a [`Lifecycle`]; [`Lifecycle::start`] runs the task behind it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::error::{GenerationError, StartError, SubmitError};
use crate::metrics::EngineMetrics;
use crate::permits::{Permit, Permits};
use crate::shard::monitor::Monitor;
use crate::shard::vitals::Vitals;
use crate::tenant::Tenant;

/// Pause between two attempts to connect to a lost shard.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// State that all handles of an engine or an encoder share with its task. `R` describes the shard that was connected.
pub(crate) struct Lifecycle<R> {
    permits: Arc<Permits>,
    draining: AtomicBool,
    healthy: AtomicBool,
    vitals: Arc<Vitals>,
    progress: watch::Receiver<Progress<R>>,
}

enum Progress<R> {
    Loading,
    Ready(Arc<R>),
    Failed(StartError),
}

/// Finds the shard and prepares it for work.
pub(crate) trait Connector: Send + Sync + 'static {
    type Connection: Send;
    type Ready: Send + Sync + 'static;

    fn connect(
        &self,
    ) -> impl Future<Output = Result<(Self::Connection, Self::Ready), StartError>> + Send;
}

/// Holds the admitted requests and computes them on a connected shard.
pub(crate) trait Worker<C: Connector>: Send {
    /// A message from a handle.
    type Command: Send + 'static;

    /// Works until the shard is lost or no handle is left.
    fn work(
        &mut self,
        connection: &mut C::Connection,
        commands: &mut UnboundedReceiver<Self::Command>,
        monitor: &mut Monitor,
    ) -> impl Future<Output = Ended> + Send;

    fn execute(&mut self, command: Self::Command);

    /// Fails the sequences that waited too long for their first step.
    fn expire(&mut self, now: Instant);

    fn fail_all(&mut self, error: &GenerationError);

    /// Number of sequences that wait or run.
    fn num_sequences(&self) -> usize;

    /// The shard is lost with everything it held.
    fn shard_lost(&mut self);

    /// An empty shard is connected.
    fn shard_restored(&mut self, ready: &C::Ready);

    /// Work that is due every second, with a shard and without.
    fn every_second(&mut self, monitor: &Monitor, now: Instant) {
        self.expire(now);
        if let Some(error) = monitor.vitals().given_up() {
            self.fail_all(&error);
        }
    }
}

/// Reasons why a [`Worker`] stopped working.
pub(crate) enum Ended {
    NoHandles,
    ShardLost(String),
}

impl<R: Send + Sync + 'static> Lifecycle<R> {
    /// Starts the task on the current runtime. `start` makes the worker once the shard is connected for the first time.
    pub fn start<C, W>(
        max_concurrent_requests: usize,
        shard_timeout: Duration,
        connector: C,
        commands: UnboundedReceiver<W::Command>,
        metrics: EngineMetrics,
        start: impl FnOnce(&C::Ready) -> W + Send + 'static,
    ) -> Arc<Self>
    where
        C: Connector<Ready = R>,
        W: Worker<C> + 'static,
    {
        let (reported, progress) = watch::channel(Progress::Loading);
        let lifecycle = Arc::new(Lifecycle {
            permits: Permits::new(max_concurrent_requests),
            draining: AtomicBool::new(false),
            healthy: AtomicBool::new(false),
            vitals: Arc::default(),
            progress,
        });
        let task = Task {
            connector,
            commands,
            monitor: Monitor::new(shard_timeout, lifecycle.vitals.clone()),
            metrics,
            lifecycle: lifecycle.clone(),
            progress: reported,
        };
        let vitals = lifecycle.vitals.clone();
        tokio::spawn(async move {
            task.run(start).await;
            vitals.ended();
        });
        lifecycle
    }

    /// Waits until the shard is connected for the first time, or has failed to start.
    pub async fn ready(&self) -> Result<Arc<R>, StartError> {
        let mut progress = self.progress.clone();
        let progress = progress
            .wait_for(|progress| !matches!(progress, Progress::Loading))
            .await;
        match progress.as_deref() {
            Ok(Progress::Ready(ready)) => Ok(ready.clone()),
            Ok(Progress::Failed(error)) => Err(error.clone()),
            Ok(Progress::Loading) | Err(_) => Err(StartError::Shard(
                "the router no longer waits for it".into(),
            )),
        }
    }

    /// Result of [`Lifecycle::ready`], or `None` before that.
    pub fn loaded(&self) -> Option<Arc<R>> {
        match &*self.progress.borrow() {
            Progress::Ready(ready) => Some(ready.clone()),
            _ => None,
        }
    }

    /// False while the shard is loading, hangs, or is being restarted.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && self.vitals.hang().is_none()
    }

    pub fn vitals(&self) -> Arc<Vitals> {
        self.vitals.clone()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Refuses what cannot be admitted now, however many permits are available.
    pub fn check_admission(&self) -> Result<(), SubmitError> {
        if self.is_draining() || self.vitals.given_up().is_some() {
            return Err(SubmitError::Draining);
        }
        if self.loaded().is_none() {
            return Err(SubmitError::NotReady);
        }
        Ok(())
    }

    /// Takes a permit for one request, whatever its tenant has used.
    pub fn take_permit(&self, tenant: Option<&Arc<Tenant>>) -> Result<Permit, SubmitError> {
        self.check_admission()?;
        self.permits.take(tenant)
    }

    /// Takes a permit for one request, unless the tokens of its tenant are spent.
    pub fn reserve(&self, tenant: Option<&Arc<Tenant>>) -> Result<Permit, SubmitError> {
        self.check_admission()?;
        if let Some(tenant) = tenant {
            tenant.check_tokens(Instant::now())?;
        }
        self.permits.take(tenant)
    }

    /// Admits nothing more. Returns when everything admitted has ended.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.permits.all_returned().await;
    }
}

/// The task behind the handles.
struct Task<C: Connector, Command> {
    connector: C,
    commands: UnboundedReceiver<Command>,
    monitor: Monitor,
    metrics: EngineMetrics,
    lifecycle: Arc<Lifecycle<C::Ready>>,
    progress: watch::Sender<Progress<C::Ready>>,
}

impl<C: Connector, Command: Send + 'static> Task<C, Command> {
    async fn run<W: Worker<C, Command = Command>>(
        mut self,
        start: impl FnOnce(&C::Ready) -> W + Send,
    ) {
        let (mut connection, ready) = match connect(&self.connector, self.monitor.vitals()).await {
            Ok(connected) => connected,
            Err(error) => {
                let _ = self.progress.send(Progress::Failed(error));
                return;
            }
        };
        let mut worker = start(&ready);
        self.report_ready(ready);
        loop {
            self.monitor.start();
            let ended = worker
                .work(&mut connection, &mut self.commands, &mut self.monitor)
                .await;
            self.lifecycle.healthy.store(false, Ordering::Relaxed);
            drop(connection);
            let reason = match ended {
                Ended::NoHandles => return,
                Ended::ShardLost(reason) => reason,
            };
            self.metrics.shard_restarts.increment(1);
            tracing::warn!(
                "lost the shard ({reason}); {} sequences wait until it is back",
                worker.num_sequences()
            );
            worker.shard_lost();
            let Some((again, ready)) = self.reconnect(&mut worker).await else {
                return;
            };
            self.monitor.vitals().answers();
            worker.shard_restored(&ready);
            tracing::info!(
                "the shard is back; {} sequences continue",
                worker.num_sequences()
            );
            self.report_ready(ready);
            connection = again;
        }
    }

    /// Tells the handles that the shard can be used. Healthy is set first: whoever waits for `ready` finds it set.
    fn report_ready(&self, ready: C::Ready) {
        self.lifecycle.healthy.store(true, Ordering::Relaxed);
        let _ = self.progress.send(Progress::Ready(Arc::new(ready)));
    }

    /// Waits for a restarted shard while requests are still admitted and aborted. `None` when no handle is left.
    async fn reconnect<W: Worker<C, Command = Command>>(
        &mut self,
        worker: &mut W,
    ) -> Option<(C::Connection, C::Ready)> {
        loop {
            let connecting = connect(&self.connector, self.monitor.vitals());
            tokio::pin!(connecting);
            let mut ticks = Monitor::ticks();
            let error = loop {
                tokio::select! {
                    connected = &mut connecting => match connected {
                        Ok(connected) => return Some(connected),
                        Err(error) => break error,
                    },
                    command = self.commands.recv() => worker.execute(command?),
                    _ = ticks.tick() => {
                        self.monitor.vitals().beat();
                        worker.every_second(&self.monitor, Instant::now());
                    }
                }
            };
            tracing::error!("connecting to the shard failed: {error}");
            if !matches!(error, StartError::Lost(_) | StartError::Silent { .. }) {
                worker.fail_all(&GenerationError::Shard(error.to_string()));
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}

async fn connect<C: Connector>(
    connector: &C,
    vitals: &Vitals,
) -> Result<(C::Connection, C::Ready), StartError> {
    let connected = connector.connect().await;
    if let Err(StartError::Silent { .. }) = &connected {
        vitals.hangs("the shard has not answered its warm-up".to_owned());
    }
    connected
}
