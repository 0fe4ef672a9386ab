//! Dates and times of day in UTC, as log lines of every process have them.

/// Formats a Unix time to the second, for example `2026-02-28T23:59:59`.
pub fn to_seconds(unix_s: u64) -> String {
    let (year, month, day) = civil_date(unix_s / 86_400);
    let second = unix_s % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Converts a number of days since 1970-01-01 to year, month and day of the Gregorian calendar.
///
/// As `civil_from_days` in Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, so that a
/// leap day is the last day of its year; 400 years have 146,097 days, and each five months from March on have 153.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_YEAR_0: u64 = 719_468;
    let days = days + DAYS_FROM_YEAR_0;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}
