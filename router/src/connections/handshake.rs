//! The beginning of an encrypted connection.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{Error, InvalidMessage};
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use super::stream::WatchedStream;

/// Answer to a client that does not encrypt.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    this port takes TLS only: the URL must begin with https://\n";

/// Maximum time for sending it.
const PLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Encrypts a connection; `None` when the client does not, or when the connection is told to end before.
pub(super) async fn encrypt(
    stream: WatchedStream,
    acceptor: TlsAcceptor,
    connection: &Connection,
) -> Option<TlsStream<WatchedStream>> {
    let result = tokio::select! {
        result = acceptor.accept(stream).into_fallible() => result,
        // However it should end: nothing has been asked yet.
        _ = connection.told_to_end() => return None,
    };
    match result {
        Ok(stream) => Some(stream),
        Err((error, mut stream)) => {
            tracing::debug!("a TLS handshake failed: {error}");
            if is_plain(&error) {
                let answer = async {
                    stream.write_all(PLAIN).await?;
                    stream.shutdown().await
                };
                let _ = tokio::time::timeout(PLAIN_TIMEOUT, answer).await;
            }
            None
        }
    }
}

/// True if what came was no TLS at all.
fn is_plain(error: &std::io::Error) -> bool {
    let error = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<Error>());
    matches!(
        error,
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType))
    )
}
