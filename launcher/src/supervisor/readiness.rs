//! Health checks of router and shards, and the report of their progress until all are ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gridwork_edge::tls;
use gridwork_proto::v1::HealthRequest;
use gridwork_proto::v1::health_response::State as ShardState;
use gridwork_proto::v1::shard_client::ShardClient;
use gridwork_settings::Http;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::logs::Log;

/// Time after which a part without news is mentioned again.
const REMIND_EVERY: Duration = Duration::from_secs(10);
/// Minimum time between two lines of a part whose news never stop (a percentage).
const CHANGE_EVERY: Duration = Duration::from_secs(1);
const STARTING: &str = "starting";
/// Maximum number of bytes to read of the router's answer.
const MAX_ANSWER_BYTES: u64 = 1 << 16;

/// Answer of a part to a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody listens yet, or no longer.
    Unreachable,
    /// Somebody listens and gives no answer in time.
    Silent,
    /// The part is not ready, and does this.
    Busy(String),
    Ready,
    /// The part will not become ready, for this reason.
    Failed(String),
}

/// Checks the health of one shard.
#[derive(Debug, Clone)]
pub struct ShardProbe {
    client: ShardClient<Channel>,
}

impl ShardProbe {
    /// Makes a probe, which does not connect yet. Must be called inside the runtime.
    pub fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        Ok(Self {
            client: ShardClient::new(endpoint.connect_lazy()),
        })
    }

    pub async fn ask(&self, timeout: Duration) -> Answer {
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(timeout, client.health(HealthRequest {})).await;
        let health = match answer {
            Err(_) => return Answer::Silent,
            // Also how a connection that breaks, as when the shard ends, is told.
            Ok(Err(status))
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled
                ) =>
            {
                return Answer::Unreachable;
            }
            Ok(Err(status)) => return Answer::Busy(status.message().to_owned()),
            Ok(Ok(response)) => response.into_inner(),
        };
        match health.state() {
            ShardState::Ready => Answer::Ready,
            ShardState::Failed => Answer::Failed(health.message),
            ShardState::Loading | ShardState::Unspecified => Answer::Busy(health.message),
        }
    }
}

/// Checks the health of the router over HTTP, as its clients would.
#[derive(Debug, Clone)]
pub enum RouterProbe {
    Tcp {
        host: String,
        port: u16,
        encrypts: bool,
    },
    Unix(PathBuf),
}

impl RouterProbe {
    /// A probe of the router with these settings.
    pub fn of(http: &Http) -> Self {
        match &http.uds {
            Some(path) => Self::Unix(path.clone()),
            None => Self::Tcp {
                host: reachable_host(&http.hostname),
                port: http.port,
                encrypts: http.tls_cert.is_some(),
            },
        }
    }

    /// URL of the router for people on this machine.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp { encrypts, .. } => {
                let scheme = if *encrypts { "https" } else { "http" };
                format!("{scheme}://{}", self.authority())
            }
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Host and port, as in a URL.
    fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "gridwork".to_owned(),
        }
    }

    pub async fn ask(&self, timeout: Duration) -> Answer {
        match tokio::time::timeout(timeout, self.get("/health")).await {
            Err(_) => Answer::Silent,
            Ok(Err(_)) => Answer::Unreachable,
            Ok(Ok(answer)) => read_answer(&answer),
        }
    }

    /// Tells whether the router knows the model: it does once it is ready, and while shards are restarted.
    pub async fn has_loaded(&self, timeout: Duration) -> bool {
        match tokio::time::timeout(timeout, self.get("/health")).await {
            Ok(Ok(answer)) => says_loaded(&answer),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    async fn get(&self, path: &str) -> std::io::Result<String> {
        let authority = self.authority();
        match self {
            Self::Tcp {
                host,
                port,
                encrypts,
            } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                if *encrypts {
                    let stream = tls::connect_unchecked(stream).await?;
                    exchange(stream, &authority, path).await
                } else {
                    exchange(stream, &authority, path).await
                }
            }
            Self::Unix(socket) => {
                exchange(UnixStream::connect(socket).await?, &authority, path).await
            }
        }
    }
}

/// Asks for `path` over a new connection, and returns the answer.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> std::io::Result<String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: gridwork\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Returns the address to connect to when a server listens on `hostname`.
fn reachable_host(hostname: &str) -> String {
    let host = hostname.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => "::1".to_owned(),
        _ => host.to_owned(),
    }
}

/// Reads an HTTP answer: 200 means ready, any other status comes with the reason.
fn read_answer(answer: &str) -> Answer {
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    if status == "200" {
        return Answer::Ready;
    }
    let body = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body.trim());
    let error = serde_json::from_str::<Value>(body)
        .ok()
        .and_then(|value| value.get("error")?.as_str().map(str::to_owned));
    match error {
        Some(error) => Answer::Busy(error),
        None if status.is_empty() => Answer::Unreachable,
        None => Answer::Busy(format!("answers {status}")),
    }
}

/// True if an answer's header says that the router knows the model.
fn says_loaded(answer: &str) -> bool {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines()
        .any(|line| line.eq_ignore_ascii_case("x-gridwork-loaded: true"))
}

/// The last answer of every part, shown while people wait. Cheap to clone.
#[derive(Clone)]
pub struct StartupReport {
    log: Log,
    states: Arc<Mutex<States>>,
}

struct States {
    parts: BTreeMap<String, Part>,
    shown_at: Instant,
}

struct Part {
    doing: String,
    ready: bool,
    shown: String,
    shown_at: Option<Instant>,
}

impl StartupReport {
    pub fn new(log: Log) -> Self {
        Self {
            log,
            states: Arc::new(Mutex::new(States {
                parts: BTreeMap::new(),
                shown_at: Instant::now(),
            })),
        }
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an answer, and logs it when it is new.
    pub fn note(&self, tag: &str, answer: &Answer) {
        let (doing, ready) = match answer {
            Answer::Unreachable => (STARTING.to_owned(), false),
            Answer::Silent => ("does not answer".to_owned(), false),
            Answer::Busy(doing) if doing.is_empty() => (STARTING.to_owned(), false),
            Answer::Busy(doing) => (doing.clone(), false),
            Answer::Ready => ("ready".to_owned(), true),
            Answer::Failed(why) => (why.clone(), false),
        };
        let now = Instant::now();
        let states = &mut *self.states();
        let part = states.parts.entry(tag.to_owned()).or_insert(Part {
            doing: String::new(),
            ready: false,
            // Not news at the start.
            shown: STARTING.to_owned(),
            shown_at: None,
        });
        (part.doing, part.ready) = (doing, ready);
        let lately = part.shown_at.is_some_and(|at| now - at < CHANGE_EVERY);
        if part.doing != part.shown && (!lately || part.ready) {
            part.shown.clone_from(&part.doing);
            part.shown_at = Some(now);
            states.shown_at = now;
            self.log.info(format!("{tag}: {}", part.doing));
        }
    }

    /// Logs the parts that are not ready, when nothing was logged for a while.
    pub fn remind(&self) {
        let now = Instant::now();
        let mut states = self.states();
        if now - states.shown_at < REMIND_EVERY {
            return;
        }
        states.shown_at = now;
        drop(states);
        self.log.info(self.describe());
    }

    /// Returns the parts that are not ready, with their last answers.
    pub fn describe(&self) -> String {
        let states = self.states();
        let waiting: Vec<String> = states
            .parts
            .iter()
            .filter(|(_, part)| !part.ready)
            .map(|(tag, part)| format!("{tag} ({})", part.doing))
            .collect();
        if waiting.is_empty() {
            "Waiting".to_owned()
        } else {
            format!("Waiting for {}", waiting.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_tells_whether_the_router_is_ready() {
        assert_eq!(read_answer("HTTP/1.1 200 OK\r\n\r\n"), Answer::Ready);
        assert_eq!(
            read_answer(
                "HTTP/1.1 503 X\r\nA: b\r\n\r\n{\"error\":\"loading\",\"error_type\":\"unhealthy\"}"
            ),
            Answer::Busy("loading".to_owned())
        );
        assert_eq!(
            read_answer("HTTP/1.1 503 X\r\n\r\nno"),
            Answer::Busy("answers 503".to_owned())
        );
        assert_eq!(read_answer(""), Answer::Unreachable);
    }

    fn probe(flags: &[&str]) -> RouterProbe {
        let flags = [&["gridwork", "--model-id", "m"], flags].concat();
        RouterProbe::of(&gridwork_settings::try_parse(flags).unwrap().http)
    }

    #[test]
    fn a_server_on_all_addresses_is_reached_by_loopback() {
        let url = |hostname| probe(&["--hostname", hostname, "--port", "80"]).url();
        assert_eq!(url("0.0.0.0"), "http://127.0.0.1:80");
        assert_eq!(url("::"), "http://[::1]:80");
        assert_eq!(url("host"), "http://host:80");
        let encrypted = probe(&["--tls-cert", "c", "--tls-key", "k", "--port", "443"]);
        assert_eq!(encrypted.url(), "https://127.0.0.1:443");
    }

    #[test]
    fn a_header_tells_whether_the_model_is_known() {
        assert!(says_loaded(
            "HTTP/1.1 503 X\r\nX-Gridwork-Loaded: true\r\n\r\n"
        ));
        assert!(!says_loaded(
            "HTTP/1.1 503 X\r\nx-gridwork-loaded: false\r\n\r\nx-gridwork-loaded: true"
        ));
    }

    #[tokio::test]
    async fn nobody_listening_is_not_silence() {
        let folder = tempfile::tempdir().unwrap();
        let shard = ShardProbe::new(&folder.path().join("none")).unwrap();
        assert_eq!(shard.ask(Duration::from_secs(5)).await, Answer::Unreachable);
        let port = crate::process::sockets::free_port().unwrap();
        let router = probe(&["--port", &port.to_string()]);
        assert_eq!(
            router.ask(Duration::from_secs(5)).await,
            Answer::Unreachable
        );
    }

    #[tokio::test]
    async fn a_listener_that_never_answers_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let shard = ShardProbe::new(&path).unwrap();
        assert_eq!(shard.ask(Duration::from_millis(200)).await, Answer::Silent);
    }
}
