//! Tests with clients that keep a server waiting, over real sockets.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::routing::{get, post};
use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// Maximum duration of a single wait in these tests, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

const LIMITS: Limits = Limits {
    max_connections: 8,
    read_timeout: LONG,
    write_timeout: LONG,
    idle_timeout: LONG,
};

struct TestServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

async fn start(limits: Limits) -> TestServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, task) = start_at(listener.into(), limits);
    TestServer {
        address,
        stop,
        task,
    }
}

fn start_at(
    listener: Listener,
    limits: Limits,
) -> (oneshot::Sender<()>, JoinHandle<io::Result<()>>) {
    let endless = || stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 4096])));
    let app = Router::new()
        .route("/health", get(|| async { "well" }))
        .route("/livez", get(|| async { "alive" }))
        .route("/large", get(|| async { "y".repeat(40_000_000) }))
        .route(
            "/endless",
            get(move || async move { Body::from_stream(endless()) }),
        )
        .route(
            "/silent",
            get(|| async { Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()) }),
        )
        .route(
            "/refuse",
            post(|| async { (axum::http::StatusCode::PAYLOAD_TOO_LARGE, "too large") }),
        )
        .route(
            "/read",
            post(|request: axum::extract::Request| async {
                match axum::body::to_bytes(request.into_body(), usize::MAX).await {
                    Ok(bytes) => (axum::http::StatusCode::OK, bytes.len().to_string()),
                    Err(error) => (axum::http::StatusCode::REQUEST_TIMEOUT, error.to_string()),
                }
            }),
        );
    let (stop, stopped) = oneshot::channel();
    let stopped = async move {
        let _ = stopped.await;
    };
    let front = Front {
        app,
        dialect_of: |_| Dialect::Tgi,
        limits,
        intake: Intake::new(1 << 20),
        gauge: Gauge::noop(),
    };
    let task = tokio::spawn(serve(listener, front, stopped));
    (stop, task)
}

impl TestServer {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address)
            .await
            .expect("a connection")
    }

    /// Sends `text` on a new connection.
    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream
    }

    /// Returns the answer to a new client.
    async fn ask(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        all(&mut self.send(&request).await).await
    }
}

/// Reads everything until the server closes.
async fn all(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("the server closes")
        .expect("it does not reset");
    String::from_utf8(read).expect("UTF-8")
}

/// Waits until the server has closed or reset the connection.
async fn is_closed(stream: &mut TcpStream) {
    let mut buffer = vec![0; 65536];
    let closed = async { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    timeout(PATIENCE, closed).await.expect("the server closes");
}

const GET_HEALTH: &str = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";

async fn first_answer(stream: &mut TcpStream) -> String {
    let mut buffer = vec![0; 1024];
    let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
    let count = read.expect("an answer").expect("an open connection");
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let server = start(Limits {
        read_timeout: SHORT,
        ..LIMITS
    })
    .await;
    is_closed(&mut server.connect().await).await;
    is_closed(&mut server.send("GET /health HTTP/1.1\r\nhost:").await).await;
    is_closed(&mut server.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await).await;
    let mut used = server.send(GET_HEALTH).await;
    assert!(first_answer(&mut used).await.contains("200 OK"));
    used.write_all(b"GET /").await.expect("sent");
    is_closed(&mut used).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_and_a_used_one_is_not() {
    let server = start(Limits {
        idle_timeout: SHORT,
        ..LIMITS
    })
    .await;
    let mut silent = server.send("GET /silent HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(first_answer(&mut silent).await.contains("200 OK"));
    let mut idle = server.send(GET_HEALTH).await;
    assert!(first_answer(&mut idle).await.contains("200 OK"));
    is_closed(&mut idle).await;
    // An answer that sends nothing for a while is not cut.
    assert!(timeout(SHORT * 4, silent.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_missing_body_is_refused_with_a_readable_answer() {
    let server = start(Limits {
        read_timeout: SHORT,
        ..LIMITS
    })
    .await;
    let head = "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc";
    let answer = all(&mut server.send(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(
        answer.contains("3 bytes") && answer.contains("--client-read-timeout"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_unread_answer_is_given_up_and_a_slowly_read_one_is_not() {
    let server = start(Limits {
        write_timeout: SHORT,
        ..LIMITS
    })
    .await;
    let unread = server
        .send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let mut slow = server
        .send("GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await;
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = timeout(PATIENCE, slow.read(&mut buffer)).await;
        match count.expect("it goes on").expect("it is not reset") {
            0 => break,
            count => read += count,
        }
        tokio::time::sleep(SHORT / 20).await;
    }
    assert!(read > 40_000_000);
    let ended = async {
        // Buffered bytes can still be read; then the connection ends.
        tokio::time::sleep(SHORT * 6).await;
        let mut unread = unread;
        is_closed(&mut unread).await;
    };
    timeout(PATIENCE, ended).await.expect("it ends");
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room() {
    let server = start(Limits {
        max_connections: 2,
        ..LIMITS
    })
    .await;
    let mut oldest = server.send(GET_HEALTH).await;
    first_answer(&mut oldest).await;
    let mut second = server.send(GET_HEALTH).await;
    first_answer(&mut second).await;
    let mut third = server.send(GET_HEALTH).await;
    assert!(first_answer(&mut third).await.contains("200 OK"));
    is_closed(&mut oldest).await;
    second.write_all(GET_HEALTH.as_bytes()).await.expect("sent");
    assert!(first_answer(&mut second).await.contains("200 OK"));
}

#[tokio::test]
async fn a_full_server_still_answers_probes() {
    let server = start(Limits {
        max_connections: 1,
        ..LIMITS
    })
    .await;
    let mut silent = server.send("GET /silent HTTP/1.1\r\nhost: a\r\n\r\n").await;
    first_answer(&mut silent).await;
    // With more probes than connections for them, the oldest end.
    let mut waiting = Vec::new();
    for _ in 0..PROBE_CONNECTIONS + 4 {
        waiting.push(server.connect().await);
    }
    assert!(server.ask("/health").await.ends_with("well"));
    assert!(server.ask("/livez").await.ends_with("alive"));
    let refused = server.ask("/large").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("--max-connections") && refused.contains("retry-after: 1"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_refusal_is_readable_while_the_client_still_writes() {
    let server = start(LIMITS).await;
    let mut stream = server.connect().await;
    let bytes = 30_000_000;
    let head = format!("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    // Some clients read nothing before they have sent everything.
    for _ in 0..bytes / 100_000 {
        stream
            .write_all(&[b'x'; 100_000])
            .await
            .expect("it is taken");
    }
    let answer = all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(
        answer.contains("connection: close") && answer.ends_with("too large"),
        "{answer}"
    );
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_waits_for_slow_readers() {
    let server = start(LIMITS).await;
    let mut idle = server.send(GET_HEALTH).await;
    first_answer(&mut idle).await;
    let mut half = server.send("GET /hea").await;
    let mut slow = server.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
    first_answer(&mut slow).await;
    server.stop.send(()).expect("it runs");
    is_closed(&mut idle).await;
    is_closed(&mut half).await;
    assert!(!server.task.is_finished());
    let rest = all(&mut slow).await;
    assert!(rest.len() > 39_990_000);
    let ended = timeout(PATIENCE, server.task).await;
    ended
        .expect("it ends")
        .expect("no panic")
        .expect("no error");
}

#[tokio::test]
async fn a_unix_socket_is_served_like_a_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("http");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (stop, task) = start_at(listener.into(), LIMITS);
    let mut stream = UnixStream::connect(&path).await.expect("a connection");
    let request = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("the server closes").expect("it does not reset");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("well"), "{answer}");
    stop.send(()).expect("it runs");
    let ended = timeout(PATIENCE, task).await.expect("it ends");
    ended.expect("no panic").expect("no error");
}
