//! The limit of open files, which bounds the number of connections.

use std::io;

/// Maximum useful limit of open files. Programs that walk over all descriptors would take long with a higher one.
const HIGHEST: u64 = 1 << 20;

/// Number of files besides connections: the listener, the shard's socket, libraries, logs, probes.
const RESERVED: u64 = 96;

/// `--max-connections` when it is not given, at least.
const DEFAULT_CONNECTIONS: usize = 4096;

/// Raises this process's limit of open files to what the system allows, and returns it. Children inherit it.
///
/// # Errors
///
/// The system's, when the limit can be neither read nor raised.
pub fn raise_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writing.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = libc::rlimit {
        rlim_cur: limit.rlim_max.min(HIGHEST).max(limit.rlim_cur),
        ..limit
    };
    // SAFETY: `wanted` is valid for reading.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(wanted.rlim_cur)
}

/// Returns the limit of open files of this process.
pub fn limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writing.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => RESERVED * 2,
    }
}

/// Returns the maximum number of connections: `wanted` if the limit of open files leaves room for them. The default is
/// 4096 or twice `max_concurrent_requests`, whichever is more, reduced to the room there is.
///
/// # Errors
///
/// Returns a message for the user if `wanted` is too large.
pub fn max_connections(
    wanted: Option<usize>,
    max_concurrent_requests: usize,
    file_limit: u64,
) -> Result<usize, String> {
    let room = file_limit.saturating_sub(RESERVED).max(file_limit / 4);
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    let default = DEFAULT_CONNECTIONS.max(max_concurrent_requests.saturating_mul(2));
    match wanted {
        None => Ok(default.min(room)),
        Some(wanted) if wanted <= room => Ok(wanted),
        Some(wanted) => Err(format!(
            "--max-connections {wanted} is more than the {room} that the limit of {file_limit} open files leaves; \
             raise the limit (`ulimit -n`), or give --max-connections {room} or less"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stay_below_the_limit_of_open_files() {
        assert_eq!(max_connections(None, 128, 256), Ok(160));
        assert_eq!(max_connections(None, 128, 1 << 20), Ok(4096));
        assert_eq!(max_connections(None, 4096, 1 << 20), Ok(8192));
        assert_eq!(max_connections(None, 128, 20), Ok(5));
        assert_eq!(max_connections(Some(160), 128, 256), Ok(160));
        let message = max_connections(Some(161), 128, 256).expect_err("too many");
        assert!(
            message.contains("--max-connections 161") && message.contains("ulimit -n"),
            "{message}"
        );
    }
}
