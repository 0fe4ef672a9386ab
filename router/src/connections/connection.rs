//! State of each connection, and the choice of connections to end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::Gauge;
use tokio::sync::Notify;

use super::Limits;

/// Ways to end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After the answers in progress have been sent.
    WhenIdle,
    /// Immediately.
    Now,
}

/// Time that a connection may take to end, apart from answers in progress.
const END_GRACE: Duration = Duration::from_secs(2);

/// Time that a connection may take to end while it drains an unread body. Longer than the stream's own limit.
const UNREAD_BODY_GRACE: Duration = Duration::from_secs(40);

/// Time that a client that reads nothing of its answer can delay the server's end.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without progress after which a body or an answer can be given up to make room.
const SLOW: Duration = Duration::from_secs(5);

/// Stands for a moment that has not happened.
const NEVER: u64 = u64::MAX;

/// One connection. Times are milliseconds since the server's start.
pub(super) struct Connection {
    id: u64,
    connections: Arc<Connections>,
    is_probe: bool,
    /// Number of requests whose answers have not been handed over completely.
    answering: AtomicUsize,
    /// Number of these requests whose body is being received.
    receiving: AtomicUsize,
    /// Last time when a request ended or bytes of an answer were written.
    active_at: AtomicU64,
    /// True once a request has arrived.
    was_used: AtomicBool,
    /// Time of the first byte of a request's head, until the head is complete.
    head_since: AtomicU64,
    /// Start of the body that is being received.
    body_since: AtomicU64,
    /// Time since which the client has read nothing.
    stalled_since: AtomicU64,
    /// Time when the connection was told to end.
    told_at: AtomicU64,
    /// True if a body was not read to its end.
    unread_body: AtomicBool,
    end: AtomicU8,
    told: Notify,
}

impl Connection {
    /// Records the arrival of a request. The guard is dropped when its answer has been handed over.
    pub fn begin(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::Relaxed);
        self.was_used.store(true, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Records that a body is being received, until the guard is dropped.
    pub fn receive(self: &Arc<Self>) -> Receiving {
        self.receiving.fetch_add(1, Ordering::Relaxed);
        self.body_since
            .store(self.connections.now(), Ordering::Relaxed);
        Receiving(self.clone())
    }

    /// Records that a body is left unread.
    pub fn leave_body(&self) {
        self.unread_body.store(true, Ordering::Relaxed);
    }

    pub fn has_unread_body(&self) -> bool {
        self.unread_body.load(Ordering::Relaxed)
    }

    /// Records that bytes have arrived.
    pub fn read(&self) {
        if self.answering.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == NEVER
        {
            self.head_since
                .store(self.connections.now(), Ordering::Relaxed);
        }
    }

    /// Records that bytes have been written.
    pub fn wrote(&self) {
        if self.stalled_since.load(Ordering::Relaxed) != NEVER {
            self.stalled_since.store(NEVER, Ordering::Relaxed);
        }
        self.active_at
            .store(self.connections.now(), Ordering::Relaxed);
    }

    /// Records that bytes cannot be written for now.
    pub fn write_waits(&self) {
        if self.stalled_since.load(Ordering::Relaxed) == NEVER {
            self.stalled_since
                .store(self.connections.now(), Ordering::Relaxed);
        }
    }

    /// Resolves whenever the connection is told to end.
    pub async fn told_to_end(&self) -> End {
        self.told.notified().await;
        match self.end.load(Ordering::Relaxed) {
            2 => End::Now,
            _ => End::WhenIdle,
        }
    }

    fn tell(&self, end: End) {
        let value = match end {
            End::WhenIdle => 1,
            End::Now => 2,
        };
        if self.end.fetch_max(value, Ordering::Relaxed) < value {
            if self.told_at.load(Ordering::Relaxed) == NEVER {
                self.told_at
                    .store(self.connections.now(), Ordering::Relaxed);
            }
            self.told.notify_one();
        }
    }

    fn has_been_told(&self) -> bool {
        self.told_at.load(Ordering::Relaxed) != NEVER
    }

    fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    /// Milliseconds from `moment` to `now`; 0 if the moment has not happened.
    fn since(moment: &AtomicU64, now: u64) -> u64 {
        match moment.load(Ordering::Relaxed) {
            NEVER => 0,
            moment => now.saturating_sub(moment),
        }
    }

    /// Returns how the connection should end now, if it should.
    fn overdue(&self, now: u64, limits: &Limits, closing: bool) -> Option<End> {
        let past = |moment, limit: Duration| Self::since(moment, now) > millis(limit);
        let write_timeout = if closing {
            limits.write_timeout.min(LAST_WRITE_TIMEOUT)
        } else {
            limits.write_timeout
        };
        if past(&self.stalled_since, write_timeout) {
            return Some(End::Now);
        }
        if self.is_answering() || self.stalled_since.load(Ordering::Relaxed) != NEVER {
            return None;
        }
        let grace = if self.has_unread_body() {
            UNREAD_BODY_GRACE
        } else {
            END_GRACE
        };
        if past(&self.told_at, grace) {
            return Some(End::Now);
        }
        let idle = if self.was_used.load(Ordering::Relaxed) {
            limits.idle_timeout
        } else {
            limits.read_timeout
        };
        let is_over = past(&self.head_since, limits.read_timeout) || past(&self.active_at, idle);
        is_over.then_some(End::WhenIdle)
    }
}

/// Held while a request is answered.
pub(super) struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        let connection = &self.0;
        connection
            .active_at
            .store(connection.connections.now(), Ordering::Relaxed);
        connection.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Held while a body is received.
pub(super) struct Receiving(Arc<Connection>);

impl Receiving {
    pub fn connection(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.receiving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Holds a connection's place in the list while its task runs.
pub(super) struct Listed(Arc<Connection>);

impl std::ops::Deref for Listed {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.connections.remove(self.0.id);
    }
}

/// All connections.
pub(super) struct Connections {
    limits: Limits,
    /// Their number, for the metrics page.
    gauge: Gauge,
    began: Instant,
    next_id: AtomicU64,
    all: Mutex<HashMap<u64, Arc<Connection>>>,
    closing: AtomicBool,
    /// Notified when the last connection has ended.
    empty: Notify,
}

impl Connections {
    pub fn new(limits: Limits, gauge: Gauge) -> Arc<Self> {
        Arc::new(Connections {
            limits,
            gauge,
            began: Instant::now(),
            next_id: AtomicU64::new(0),
            all: Mutex::new(HashMap::new()),
            closing: AtomicBool::new(false),
            empty: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn number(&self) -> usize {
        self.all().len()
    }

    /// Adds a connection. `is_probe` allows it beyond the maximum.
    pub fn add(self: &Arc<Self>, is_probe: bool) -> Listed {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let never = || AtomicU64::new(NEVER);
        let connection = Arc::new(Connection {
            id,
            connections: self.clone(),
            is_probe,
            answering: AtomicUsize::new(0),
            receiving: AtomicUsize::new(0),
            active_at: AtomicU64::new(self.now()),
            was_used: AtomicBool::new(false),
            head_since: never(),
            body_since: never(),
            stalled_since: never(),
            told_at: never(),
            unread_body: AtomicBool::new(false),
            end: AtomicU8::new(0),
            told: Notify::new(),
        });
        let mut all = self.all();
        all.insert(id, connection.clone());
        self.gauge.set(all.len() as f64);
        Listed(connection)
    }

    fn remove(&self, id: u64) {
        let mut all = self.all();
        all.remove(&id);
        self.gauge.set(all.len() as f64);
        if all.is_empty() {
            self.empty.notify_waiters();
        }
    }

    /// Ends the connections whose time is used up.
    pub fn sweep(&self) {
        let now = self.now();
        let closing = self.closing.load(Ordering::Relaxed);
        for connection in self.all().values() {
            if let Some(end) = connection.overdue(now, &self.limits, closing) {
                connection.tell(end);
            }
        }
    }

    /// Ends the least needed connection. Returns false when all are in use.
    ///
    /// That is the connection without a request for the longest time, else the one whose body has been arriving
    /// for the longest, else the one that has not read its answer for the longest.
    pub fn make_room(&self) -> bool {
        let now = self.now();
        let all = self.all();
        let candidates = || {
            all.values()
                .filter(|connection| !connection.is_probe && !connection.has_been_told())
        };
        let idle = candidates()
            .filter(|connection| {
                !connection.is_answering()
                    && connection.stalled_since.load(Ordering::Relaxed) == NEVER
            })
            .min_by_key(|connection| (connection.active_at.load(Ordering::Relaxed), connection.id));
        if let Some(idle) = idle {
            idle.tell(End::WhenIdle);
            return true;
        }
        let slow = |moment: fn(&Connection) -> &AtomicU64, counts: fn(&Connection) -> bool| {
            candidates()
                .filter(|connection| counts(connection))
                .map(|connection| (Connection::since(moment(connection), now), connection))
                .filter(|(age, _)| *age > millis(SLOW))
                .max_by_key(|(age, _)| *age)
                .map(|(_, connection)| connection)
        };
        let receiving = slow(
            |connection| &connection.body_since,
            |connection| connection.receiving.load(Ordering::Relaxed) > 0,
        );
        let stalled = || {
            slow(
                |connection| &connection.stalled_since,
                |connection| !connection.is_answering(),
            )
        };
        match receiving.or_else(stalled) {
            Some(connection) => {
                connection.tell(End::Now);
                true
            }
            None => false,
        }
    }

    /// Ends the oldest of the connections for probes.
    pub fn drop_probe(&self) -> bool {
        let all = self.all();
        let probes = all
            .values()
            .filter(|connection| connection.is_probe && !connection.has_been_told());
        let oldest = probes.min_by_key(|connection| connection.id);
        if let Some(oldest) = oldest {
            oldest.tell(End::Now);
        }
        oldest.is_some()
    }

    /// Ends all connections after their answers have been sent, and returns when all are closed.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        for connection in self.all().values() {
            connection.tell(End::WhenIdle);
        }
        loop {
            let empty = self.empty.notified();
            if self.all().is_empty() {
                return;
            }
            empty.await;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
