//! The function `strftime_now`.

use super::error::{Error, Result};

/// Evaluates `datetime.now().strftime(format)`: local time, C locale.
pub fn strftime_now(format: &str) -> Result<String> {
    let invalid = || Error::runtime("strftime_now: the format is not usable");
    if format.is_empty() {
        return Ok(String::new());
    }
    if format.len() > 1000 {
        return Err(Error::refused(
            "a format of `strftime_now` beyond 1000 bytes",
        ));
    }
    let microseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_micros());
    let format = with_microseconds(format, microseconds);
    let format = std::ffi::CString::new(format).map_err(|_| invalid())?;
    let mut buffer = [0u8; 4096];
    // SAFETY: `time` and `broken_down` live on this stack, `format` ends with a zero byte, and strftime writes at most
    // `buffer.len()` bytes and returns their number.
    let length = unsafe {
        let time = libc::time(std::ptr::null_mut());
        let mut broken_down: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&time, &mut broken_down).is_null() {
            return Err(invalid());
        }
        libc::strftime(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format.as_ptr(),
            &broken_down,
        )
    };
    if length == 0 {
        return Err(invalid());
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Expands Python's own directives: `%f` is the microsecond; `%z` and `%Z` are empty for a time without a zone.
fn with_microseconds(format: &str, microseconds: u32) -> String {
    let mut result = String::with_capacity(format.len() + 8);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            result.push(c);
            continue;
        }
        match chars.next() {
            Some('f') => result.push_str(&format!("{microseconds:06}")),
            Some('z' | 'Z') => {}
            Some(directive) => result.extend(['%', directive]),
            None => result.push('%'),
        }
    }
    result
}
