//! The beginning of an encrypted connection.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use super::stream::WatchedStream;

/// Answer to a client that does not encrypt.
const PLAIN: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    this port takes TLS only: the URL must begin with https://\n";

/// Maximum time for sending it.
const PLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// First byte of everything that a client sends in a handshake.
const HANDSHAKE: u8 = 0x16;

/// Encrypts a connection; `None` when the client does not, or when the connection is told to end before.
pub(super) async fn encrypt(
    mut stream: WatchedStream,
    acceptor: TlsAcceptor,
    connection: &Connection,
) -> Option<TlsStream<WatchedStream>> {
    let handshake = async {
        // Looked at first: what follows a failed handshake has an alert before it, which is no HTTP.
        match stream.first_byte().await {
            Ok(HANDSHAKE) => acceptor.accept(stream).await,
            Ok(_) => {
                let answer = async {
                    stream.write_all(PLAIN).await?;
                    stream.shutdown().await
                };
                let _ = tokio::time::timeout(PLAIN_TIMEOUT, answer).await;
                Err(io::Error::other("the client does not encrypt"))
            }
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        result = handshake => result
            .inspect_err(|error| tracing::debug!("a TLS handshake failed: {error}"))
            .ok(),
        // However it should end: nothing has been asked yet.
        _ = connection.told_to_end() => None,
    }
}
