//! The time of a log line.

use std::time::{SystemTime, UNIX_EPOCH};

use gridwork_settings::utc;

/// Returns the present time as RFC 3339 in UTC with milliseconds.
pub fn now() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format(since.as_secs(), since.subsec_millis())
}

/// Brings a UTC timestamp of whatever precision into the form of [`now`], so that lines of all processes align. Others
/// are left as they are.
pub fn tidy(timestamp: String) -> String {
    let utc = timestamp
        .strip_suffix('Z')
        .or_else(|| timestamp.strip_suffix("+00:00"));
    match utc {
        Some(utc) if utc.is_ascii() && utc.len() >= 19 && utc.as_bytes()[10] == b'T' => {
            let fraction = utc[19..].strip_prefix('.').unwrap_or_default();
            format!("{}.{fraction:0<3.3}Z", &utc[..19])
        }
        _ => timestamp,
    }
}

fn format(unix_s: u64, ms: u32) -> String {
    format!("{}.{ms:03}Z", utc::to_seconds(unix_s))
}

#[cfg(test)]
mod tests {
    use super::{format, tidy};

    #[test]
    fn dates_are_right_around_leap_days() {
        for (unix_s, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_767_225_600, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(format(unix_s, 0), expected);
        }
        assert_eq!(format(1, 7), "1970-01-01T00:00:01.007Z");
    }

    #[test]
    fn timestamps_get_one_form() {
        for (given, expected) in [
            (
                "2024-02-29T23:59:59.123456+00:00",
                "2024-02-29T23:59:59.123Z",
            ),
            ("2024-02-29T23:59:59.1Z", "2024-02-29T23:59:59.100Z"),
            ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59.000Z"),
            ("2024-02-29T23:59:59+02:00", "2024-02-29T23:59:59+02:00"),
            ("T", "T"),
            ("Z", "Z"),
        ] {
            assert_eq!(tidy(given.to_owned()), expected);
        }
    }
}
