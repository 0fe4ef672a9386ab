//! The limit of open files, which bounds the number of connections.

/// Maximum useful limit of open files. Programs that walk over all descriptors would take long with a higher one.
const HIGHEST: u64 = 1 << 20;

/// Number of files besides connections: the listener, the shard's socket, libraries, logs, probes.
const RESERVED: u64 = 96;

/// Raises this process's limit of open files to what the system allows, and returns it.
pub fn raise_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writing.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return RESERVED * 2;
    }
    let wanted = libc::rlimit {
        rlim_cur: limit.rlim_max.min(HIGHEST).max(limit.rlim_cur),
        ..limit
    };
    // SAFETY: `wanted` is valid for reading.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } == 0 {
        wanted.rlim_cur
    } else {
        limit.rlim_cur
    }
}

/// Returns the maximum number of connections: `wanted` if the limit of open files leaves room for them.
///
/// # Errors
///
/// Returns a message for the user if `wanted` is too large.
pub fn max_connections(
    wanted: Option<usize>,
    default: usize,
    file_limit: u64,
) -> Result<usize, String> {
    let room = file_limit.saturating_sub(RESERVED).max(file_limit / 4);
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
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
        assert_eq!(max_connections(None, 4096, 256), Ok(160));
        assert_eq!(max_connections(None, 4096, 1 << 20), Ok(4096));
        assert_eq!(max_connections(None, 4096, 20), Ok(5));
        assert_eq!(max_connections(Some(160), 4096, 256), Ok(160));
        let message = max_connections(Some(161), 4096, 256).expect_err("too many");
        assert!(
            message.contains("--max-connections 161") && message.contains("ulimit -n"),
            "{message}"
        );
    }
}
