//! Options of a client's socket.

use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use tokio::net::TcpStream;

/// Time after which a silent peer is probed, and after which it is given up.
const KEEP_ALIVE_IDLE_S: c_int = 60;
const KEEP_ALIVE_INTERVAL_S: c_int = 15;
const KEEP_ALIVE_PROBES: c_int = 4;

/// Number of unsent bytes that the system buffers for a client.
const UNSENT_BYTES: c_int = 128 * 1024;

/// Sends small writes at once, since a token must not wait for the next one; detects dead peers; and keeps the system's
/// buffer small for a client that does not read.
pub(super) fn prepare(stream: &TcpStream, write_timeout: Duration) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY cannot be set: {error}");
    }
    let write_timeout_ms = c_int::try_from(write_timeout.as_millis()).unwrap_or(c_int::MAX);
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S),
        (
            libc::IPPROTO_TCP,
            libc::TCP_KEEPINTVL,
            KEEP_ALIVE_INTERVAL_S,
        ),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEP_ALIVE_PROBES),
        (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT_BYTES),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, write_timeout_ms),
    ] {
        set(stream, level, option, value);
    }
}

fn set(stream: &TcpStream, level: c_int, option: c_int, value: c_int) {
    let size = size_of::<c_int>() as socklen_t;
    // SAFETY: the descriptor is open while `stream` is, and `value` outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            option,
            (&raw const value).cast::<c_void>(),
            size,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!("socket option {option} cannot be set: {error}");
    }
}
