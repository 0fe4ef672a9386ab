//! Parsers of single values, and of the command line as a whole.

use std::ffi::OsString;
use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};

use super::Cli;

/// A value that is never shown: its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Never fails, so that clap never prints the value in an error.
pub fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(text.to_owned()))
}

/// Parses a number of bytes: `1073741824`, `1GiB`, `1.5 GiB`, `512MB`, `64k`. Binary units (KiB, MiB, GiB, TiB) are
/// powers of 1024, decimal ones (kB, MB, GB, TB) of 1000; a bare `k`, `M`, `G`, `T` is binary.
pub fn parse_size(text: &str) -> Result<u64, String> {
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
        return Err("must be above 0".to_owned());
    }
    if bytes >= u64::MAX as f64 {
        return Err(format!("too large; {usage}"));
    }
    Ok(bytes as u64)
}

/// Parses a fraction above 0 and at most 1.
pub fn fraction(text: &str) -> Result<f32, String> {
    match text.trim().parse::<f32>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be a number above 0 and at most 1".to_owned()),
    }
}

/// Parses a number of threads; how many there may be is checked when the cores are known.
pub fn cpu_threads(text: &str) -> Result<u32, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match text.trim().parse::<u32>() {
        Ok(threads) if threads > 0 => Ok(threads),
        _ => Err(format!(
            "must be a number, at least 1 and at most the {cores} cores that may be used"
        )),
    }
}

/// Parses a list of batch sizes, `1,2,4`, or `0` for none. Returns the text without spaces.
pub fn batch_sizes(text: &str) -> Result<String, String> {
    let usage = "give batch sizes, for example 1,2,4,8, or 0 for none";
    let sizes: Vec<u32> = text
        .split(',')
        .map(|size| size.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|_| usage.to_owned())?;
    if sizes.contains(&0) && sizes.len() > 1 {
        return Err(format!("0 stands alone; {usage}"));
    }
    let sizes: Vec<String> = sizes.iter().map(u32::to_string).collect();
    Ok(sizes.join(","))
}

/// Parses an origin as browsers send it (RFC 6454, section 6.1): scheme, host and port alone; or `*`.
pub fn origin(text: &str) -> Result<String, String> {
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
        // A colon of an IPv6 address, which stands in brackets.
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

/// Accepts `http://…` and `https://…`.
pub fn url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(text.to_owned()),
        _ => Err("must start with http:// or https://".to_owned()),
    }
}

/// Parses and validates the command line and the environment.
///
/// Environment variables of ours that are set but empty count as not set (compose files pass them so) and are removed; all
/// but the key of the API: a server that is meant to have one must not be open.
/// Ends the process for `--help`, `--version` and wrong values, after saying what was wrong.
pub fn parse_command_line() -> Cli {
    let command = Cli::command();
    for name in command.get_arguments().filter_map(|arg| arg.get_env()) {
        if name != "API_KEY" && std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            // SAFETY: called first thing in `main`, before any other thread exists.
            unsafe { std::env::remove_var(name) };
        }
    }
    match try_parse(command, std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// Parses `args` (the program's name first) and checks what depends on several values.
pub fn try_parse<I>(mut command: Command, args: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = OsString>,
{
    let args: Vec<OsString> = args.into_iter().collect();
    let parsed = command
        .try_get_matches_from_mut(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => match cli.validate() {
            Ok(()) => Ok(cli),
            Err(message) => Err(command.error(ErrorKind::ValueValidation, message)),
        },
        Err(error) => Err(name_the_variable(&command, error, &args)),
    }
}

/// Says so when a refused value came from an environment variable: the user typed no such flag.
fn name_the_variable(command: &Command, mut error: clap::Error, args: &[OsString]) -> clap::Error {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation
    ) {
        return error;
    }
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let arg = command
        .get_arguments()
        .find(|arg| arg.to_string() == *shown);
    let Some((long, variable)) = arg.and_then(|arg| Some((arg.get_long()?, arg.get_env()?))) else {
        return error;
    };
    let flag = format!("--{long}");
    let typed = args
        .iter()
        .any(|given| given.to_string_lossy().split('=').next() == Some(&flag));
    if !typed && std::env::var_os(variable).is_some() {
        // clap puts the whole in quotes.
        let shown = format!(
            "{shown}' from the environment variable '{}",
            variable.to_string_lossy()
        );
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        assert_eq!(parse_size("1024"), Ok(1024));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("2MB"), Ok(2_000_000));
    }

    #[test]
    fn wrong_sizes_say_what_is_allowed() {
        for wrong in ["", "GiB", "4 apples", "-1", "1..2GiB"] {
            let message = parse_size(wrong).unwrap_err();
            assert!(message.contains("4GiB"), "{wrong}: {message}");
        }
        assert!(parse_size("0").is_err());
    }

    #[test]
    fn batch_sizes_are_a_list_or_none() {
        assert_eq!(batch_sizes("1, 2,8"), Ok("1,2,8".to_owned()));
        assert_eq!(batch_sizes("0"), Ok("0".to_owned()));
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
