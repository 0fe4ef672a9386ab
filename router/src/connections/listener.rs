//! Where clients connect: a port, or a unix socket; with or without TLS.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::socket;

/// A socket that clients connect to.
pub struct Listener {
    socket: Socket,
    tls: Option<TlsAcceptor>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a unix socket that only this user can connect to. Replaces a socket of an earlier router.
    ///
    /// Must be called before other threads make files, whose permissions it would change.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        let is_socket = |data: std::fs::Metadata| data.file_type().is_socket();
        if path.symlink_metadata().is_ok_and(is_socket) {
            std::fs::remove_file(path)?;
        }
        // SAFETY: plain system calls. With this mask there is no moment at which others could connect.
        let mask = unsafe { libc::umask(0o177) };
        let listener = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener.into())
    }

    /// The same socket, whose connections are encrypted.
    pub fn encrypted(self, config: Arc<ServerConfig>) -> Self {
        Self {
            tls: Some(config.into()),
            ..self
        }
    }

    /// Encryption of the connections; `None`: there is none.
    pub(super) fn tls(&self) -> Option<&TlsAcceptor> {
        self.tls.as_ref()
    }

    pub(super) async fn accept(&self) -> io::Result<ClientStream> {
        match &self.socket {
            Socket::Tcp(listener) => Ok(ClientStream::Tcp(listener.accept().await?.0)),
            Socket::Unix(listener) => Ok(ClientStream::Unix(listener.accept().await?.0)),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(formatter, "{address}"),
                Err(error) => write!(formatter, "a port ({error})"),
            },
            Socket::Unix(listener) => match listener.local_addr() {
                Ok(address) => write!(formatter, "{address:?}"),
                Err(error) => write!(formatter, "a unix socket ({error})"),
            },
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self {
            socket: Socket::Tcp(listener),
            tls: None,
        }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self {
            socket: Socket::Unix(listener),
            tls: None,
        }
    }
}

/// The server's end of a client's connection.
#[derive(Debug)]
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    /// Sets the options of a connection over a network; a unix socket needs none of them.
    pub fn prepare(&self, write_timeout: Duration) {
        if let Self::Tcp(stream) = self {
            socket::prepare(stream, write_timeout);
        }
    }
}

impl ClientStream {
    /// The first byte that the client has sent, which stays to be read.
    pub async fn first_byte(&self) -> io::Result<u8> {
        match self {
            Self::Tcp(stream) => {
                let mut byte = [0];
                match stream.peek(&mut byte).await? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => Ok(byte[0]),
                }
            }
            Self::Unix(_) => Err(io::Error::other("a unix socket is not encrypted")),
        }
    }
}

/// Calls a method of whichever stream there is.
macro_rules! with_stream {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            ClientStream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            ClientStream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with_stream!(self.poll_read(context, buffer))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_belongs_to_its_user_and_replaces_an_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http");
        drop(Listener::bind_unix(&path).expect("a socket"));
        let listener = Listener::bind_unix(&path).expect("the old socket is replaced");
        let mode = path.metadata().expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = UnixStream::connect(&path).await.expect("a connection");
        listener.accept().await.expect("it is accepted");
        drop(client);
        assert!(listener.to_string().contains("http"));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http");
        std::fs::write(&path, "mine").expect("a file");
        assert!(Listener::bind_unix(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "mine");
    }
}
