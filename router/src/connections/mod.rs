//! Connections of clients: accepting them, their limits, and closing them.
//!
//! A connection holds a file, and memory for data that was read or not yet written. Connections without progress
//! are closed, see [`Limits`]. Their number is bounded below the limit of open files. At the bound, the connection
//! that has been idle for the longest time makes room for a new one. When none is idle, a few more are accepted
//! for probes ([`PROBES`]), so that `/health` answers on a full server.

mod body;
mod connection;
mod handshake;
pub mod intake;
mod listener;
mod probes;
mod socket;
mod stream;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Version, header};
use axum::middleware::from_fn_with_state;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::connections::intake::Intake;
use crate::error::Dialect;
pub use body::BodyError;
use body::{AnswerBody, RequestBody};
use connection::{Connection, Connections, End, Listed};
use listener::ClientStream;
pub use listener::Listener;
pub use probes::PROBES;
use stream::WatchedStream;

/// Limits of what a client can use by connecting.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of connections.
    pub max_connections: usize,
    /// Time limit for sending the head of a request, and its body: see [`RequestBody`].
    pub read_timeout: Duration,
    /// Maximum time for which a client may read nothing of a waiting answer.
    pub write_timeout: Duration,
    /// Maximum time for which a connection stays open without a request.
    pub idle_timeout: Duration,
}

/// Maximum size of a request's head, and of the data buffered for one client besides the frame being written.
const BUFFER_BYTES: usize = 64 * 1024;

/// Interval between checks of the limits.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Pause after accepting a connection failed for lack of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Number of connections beyond the maximum that are kept for probes.
const PROBE_CONNECTIONS: usize = 32;

/// The application behind the connections, and their limits.
pub struct Front {
    pub app: Router,
    /// Dialect of the errors of a path.
    pub dialect_of: fn(&str) -> Dialect,
    pub limits: Limits,
    pub intake: Intake,
    /// Number of connections, for the metrics page.
    pub gauge: Gauge,
}

/// Serves on `listener` until `stop` resolves, and returns when every answer in progress has been sent.
pub async fn serve(
    listener: Listener,
    front: Front,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let connections = Connections::new(front.limits, front.gauge.clone());
    let server = Server {
        front,
        tls: listener.tls().cloned(),
        connections: connections.clone(),
    };
    let sweeping = connections.clone();
    let sweeper = tokio::spawn(async move {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            sweeping.sweep();
        }
    });
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok(stream) => server.take(stream),
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                connections.make_room();
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close().await;
    sweeper.abort();
    Ok(())
}

/// True if the client closed the connection before it was accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

struct Server {
    front: Front,
    tls: Option<TlsAcceptor>,
    connections: Arc<Connections>,
}

impl Server {
    /// Serves another connection, if there is room.
    fn take(&self, stream: ClientStream) {
        let Front {
            app,
            dialect_of,
            limits,
            intake,
            ..
        } = &self.front;
        stream.prepare(limits.write_timeout);
        let is_full =
            self.connections.number() >= limits.max_connections && !self.connections.make_room();
        let most = limits.max_connections + PROBE_CONNECTIONS;
        if is_full && self.connections.number() >= most && !self.connections.drop_probe() {
            return;
        }
        let connection = self.connections.add(is_full);
        let app = if is_full {
            let only_probes = from_fn_with_state(*dialect_of, probes::only_probes);
            app.clone().layer(only_probes)
        } else {
            app.clone()
        };
        let (intake, limits, tls) = (intake.clone(), *limits, self.tls.clone());
        tokio::spawn(async move {
            let stream = WatchedStream::new(stream, connection.clone());
            match tls {
                None => run(stream, app, intake, limits, connection).await,
                Some(acceptor) => {
                    if let Some(stream) = handshake::encrypt(stream, acceptor, &connection).await {
                        run(stream, app, intake, limits, connection).await;
                    }
                }
            }
        });
    }
}

/// Serves the requests of one connection.
async fn run(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    intake: Intake,
    limits: Limits,
    connection: Listed,
) {
    let io = TokioIo::new(stream);
    let of_service = connection.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        answer(
            request,
            app.clone(),
            intake.clone(),
            limits,
            of_service.clone(),
        )
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The sweeper enforces its own limits for heads and idle connections.
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(BUFFER_BYTES as u32)
        .max_send_buf_size(BUFFER_BYTES)
        .keep_alive_interval(Some(limits.idle_timeout))
        .keep_alive_timeout(limits.read_timeout);
    let serving = builder.serve_connection(io, service);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            ended = &mut serving => {
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error}");
                }
                break;
            }
            end = connection.told_to_end() => match end {
                End::WhenIdle => serving.as_mut().graceful_shutdown(),
                End::Now => break,
            },
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    app: Router,
    intake: Intake,
    limits: Limits,
    connection: Arc<Connection>,
) -> Result<axum::http::Response<AnswerBody>, Infallible> {
    let version = request.version();
    let answering = connection.begin();
    let ticket = intake.ticket();
    let (request, received) = {
        let (head, body) = request.into_parts();
        let body = RequestBody::new(body, connection, limits.read_timeout);
        let received = body.received();
        (Request::from_parts(head, Body::new(body)), received)
    };
    let response = ticket.while_handling(app.oneshot(request)).await;
    let mut response = match response {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // The unread rest of this body would be read as the next request.
    if !received.is_whole() && version < Version::HTTP_2 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // HTTP/1 continues reading when the body is dropped.
    let rest = (version >= Version::HTTP_2).then_some(received);
    Ok(response.map(|body| AnswerBody::new(body, answering, rest)))
}

#[cfg(test)]
mod tests;
