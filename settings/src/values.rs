//! Parsers of single values.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Maximum number of seconds of a timeout: a longer one would overflow clocks.
pub(crate) const YEAR_S: u64 = 365 * 24 * 60 * 60;

/// A value that is never shown: its `Debug` form hides it. Its JSON form does not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Sorted batch sizes without repetitions; none for the value `0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BatchSizes(pub Vec<u32>);

/// Returns the name that stands for `value` on the command line.
pub fn value_name<T: ValueEnum>(value: T) -> String {
    value
        .to_possible_value()
        .map(|possible| possible.get_name().to_owned())
        .unwrap_or_default()
}

/// Never fails, so that clap never prints the value in an error.
pub(crate) fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(text.to_owned()))
}

/// Parses a number of bytes: `1073741824`, `1GiB`, `1.5 GiB`, `512MB`, `64k`. Binary units (KiB, MiB, GiB, TiB) are
/// powers of 1024, decimal ones (kB, MB, GB, TB) of 1000; a bare `k`, `M`, `G`, `T` is binary.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let usage = "give bytes, or a number with KiB, MiB, GiB or TiB, for example 4GiB";
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("not a size; {usage}"))?;
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        other => return Err(format!("unknown unit \"{other}\"; {usage}")),
    };
    let bytes = number * scale as f64;
    if bytes < 1.0 {
        return Err(format!("must be above 0; {usage}"));
    }
    if bytes >= i64::MAX as f64 {
        return Err(format!("too large; {usage}"));
    }
    Ok(bytes as u64)
}

/// Parses a fraction above 0 and at most 1.
pub(crate) fn fraction(text: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be a number above 0 and at most 1".to_owned()),
    }
}

/// Parses a ratio, for example of traces. 0 and 1 are allowed.
pub(crate) fn ratio(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

/// Parses a bias of logits.
pub(crate) fn bias(text: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(value) if (-100.0..=100.0).contains(&value) => Ok(value),
        _ => Err("must be a number from -100 to 100".to_owned()),
    }
}

/// Parses a number of threads. The launcher compares it with the cores once it has counted them.
pub(crate) fn cpu_threads(text: &str) -> Result<u32, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match text.trim().parse::<u32>() {
        Ok(threads) if threads > 0 => Ok(threads),
        _ => Err(format!(
            "must be a number, at least 1 and at most the {cores} cores that may be used"
        )),
    }
}

/// Parses a list of batch sizes, `1,2,4`, or `0` for none.
pub(crate) fn batch_sizes(text: &str) -> Result<BatchSizes, String> {
    let usage = "give batch sizes, for example 1,2,4,8, or 0 for none";
    let mut sizes: Vec<u32> = text
        .split(',')
        .map(|size| size.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|_| usage.to_owned())?;
    if sizes == [0] {
        return Ok(BatchSizes(Vec::new()));
    }
    if sizes.contains(&0) {
        return Err(format!("0 stands alone; {usage}"));
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(BatchSizes(sizes))
}

/// Parses the path under which a proxy publishes the server: `/a/b`, or `/` and nothing for the root itself.
pub(crate) fn root_path(text: &str) -> Result<String, String> {
    let path = text.trim().trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    let is_path = path.is_empty() || path.starts_with('/');
    if is_path && path.chars().all(is_plain) && !path.contains("//") {
        return Ok(path.to_owned());
    }
    Err("must be a path such as /llm, of letters, digits, -, _, . and ~".to_owned())
}

/// Parses an origin as browsers send it (RFC 6454, section 6.1): scheme, host and port alone; or `*`.
pub(crate) fn origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_origin = text
        .split_once("://")
        .is_some_and(|(scheme, host)| is_scheme(scheme) && is_host_and_port(host));
    if is_origin || matches!(text, "*" | "null") {
        return Ok(text.to_owned());
    }
    Err(
        "an origin is a scheme, a host and maybe a port, without a path, for example https://example.com:8080; * is any"
            .to_owned(),
    )
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        })
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // The colon belongs to an IPv6 address, which stands in brackets.
        Some((_, port)) if port.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_name = |name: &str| {
        name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._~".contains(&byte)
        })
    };
    let is_host = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && is_name(host),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Parses the URL of a collector of traces: `http://` and a host. No process of this build can encrypt.
pub(crate) fn collector(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| {
        "not a URL; give http:// and a host, for example http://localhost:4317".to_owned()
    })?;
    match uri.scheme_str() {
        Some("http") => Ok(text.to_owned()),
        Some("https") => Err(
            "this build cannot encrypt; give http:// and a collector in the same network"
                .to_owned(),
        ),
        _ => Err(
            "a collector's URL begins with http://, for example http://localhost:4317".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(size("1024"), Ok(1024));
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("512 MiB"), Ok(512 << 20));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("2MB"), Ok(2_000_000));
    }

    #[test]
    fn wrong_sizes_say_what_is_allowed() {
        for wrong in ["", "GiB", "4 apples", "-1", "1..2GiB", "0", "9999999TiB"] {
            let message = size(wrong).unwrap_err();
            assert!(message.contains("4GiB"), "{wrong}: {message}");
        }
    }

    #[test]
    fn batch_sizes_are_a_list_or_none() {
        assert_eq!(batch_sizes("8, 1,2,2"), Ok(BatchSizes(vec![1, 2, 8])));
        assert_eq!(batch_sizes("0"), Ok(BatchSizes(vec![])));
        for wrong in ["", "1,,2", "-1", "two", "0,1", "1.5"] {
            let message = batch_sizes(wrong).unwrap_err();
            assert!(message.contains("1,2,4,8"), "{wrong}: {message}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("hush".to_owned())), "***");
    }
}
