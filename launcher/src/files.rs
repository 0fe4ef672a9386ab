//! The limit of open files, which the router and the shards inherit.

/// More than this is of use to nobody, and programs that walk over all descriptors would take long.
const HIGHEST: u64 = 1 << 20;

/// Raises the limit of open files to what the system allows; the error says why that failed.
pub fn raise_limit() -> std::io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writing.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let wanted = libc::rlimit {
        rlim_cur: limit.rlim_max.min(HIGHEST).max(limit.rlim_cur),
        ..limit
    };
    // SAFETY: `wanted` is valid for reading.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
