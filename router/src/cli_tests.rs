//! What the command line takes, and what it refuses.

use super::*;

fn read(args: &[&str], key: Option<&str>) -> Result<Cli, clap::Error> {
    let needed = [
        "gridwork-router",
        "--model-path",
        "/m",
        "--model-id",
        "org/m",
        "--shard-socket",
        "/s/0",
    ];
    Cli::read(needed.iter().chain(args), key.map(OsString::from), None)
}

fn refusal(args: &[&str], key: Option<&str>) -> String {
    read(args, key).expect_err("a refusal").to_string()
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = read(&[], None).expect("defaults").into_config();
    assert_eq!(config.engine.max_batch_prefill_tokens, 512);
    assert_eq!(config.engine.max_sequences, 128);
    assert_eq!(config.engine.max_concurrent_requests, 128);
    assert_eq!(config.engine.speculate, 0);
    assert!(matches!(config.engine.shard, ShardAddress::Unix(path) if path == *"/s/0"));
    assert_eq!(config.http.payload_limit_bytes, 2_000_000);
    assert_eq!(config.http.compute_type, "cpu");
    assert!(config.http.api_keys.is_empty() && !config.http.isolate_cache_by_key);
    assert_eq!(config.http.max_n, 128);
    assert_eq!(config.connections.max_connections, 4096);
    assert_eq!(config.graceful_termination_timeout, Duration::from_secs(90));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (flag, value) in [
        ("--max-concurrent-requests", "0"),
        ("--max-best-of", "0"),
        ("--max-batch-prefill-tokens", "0"),
        ("--max-batch-size", "0"),
        ("--block-size", "1025"),
        ("--speculate", "17"),
        ("--speculate", "-1"),
        ("--payload-limit", "0"),
        ("--max-total-tokens", "1"),
        ("--port", "70000"),
        ("--log-level", "loud"),
        ("--otlp-endpoint", "localhost:4317"),
        ("--otlp-endpoint", "https://localhost:4317"),
        ("--shard-socket", "host:notaport"),
    ] {
        let needed = ["gridwork-router", "--model-path", "/m", "--model-id", "m"];
        let socket = if flag == "--shard-socket" {
            vec![]
        } else {
            vec!["--shard-socket", "/s"]
        };
        let args = needed.into_iter().chain(socket).chain([flag, value]);
        let message = Cli::read(args, None, None).expect_err(flag).to_string();
        assert!(message.contains(flag), "{message}");
    }
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let message = refusal(
        &["--max-input-tokens", "8", "--max-total-tokens", "8"],
        None,
    );
    assert!(
        message.contains("--max-input-tokens 8 must be less than --max-total-tokens 8"),
        "{message}"
    );
    let message = refusal(
        &["--max-total-tokens", "64", "--max-batch-total-tokens", "63"],
        None,
    );
    assert!(message.contains("--max-batch-total-tokens 63"), "{message}");
}

#[test]
fn a_key_is_never_shown() {
    let cli = read(&[], Some("hush")).expect("a key");
    assert!(!format!("{cli:?}").contains("hush"));
    assert_eq!(cli.into_config().http.api_keys.len(), 1);
    assert!(!refusal(&[], Some("hu sh")).contains("hu sh"));
}

#[test]
fn an_empty_key_does_not_open_the_server() {
    for key in ["", ",", "a,", ",a", "a,,b"] {
        assert!(refusal(&[], Some(key)).contains("empty key"), "{key}");
    }
}

#[test]
fn several_keys_keep_their_cached_prompts_apart_unless_told_otherwise() {
    let isolated = |args: &[&str], key| {
        let cli = read(args, key).expect("a command line");
        cli.into_config().http.isolate_cache_by_key
    };
    assert!(isolated(&[], Some("a,b")));
    assert!(!isolated(&[], Some("a")) && !isolated(&[], Some("a,a")) && !isolated(&[], None));
    assert!(isolated(&["--isolate-cache-by-key"], Some("a")));
    assert!(!isolated(&["--isolate-cache-by-key=false"], Some("a,b")));
    assert!(refusal(&["--isolate-cache-by-key"], None).contains("--isolate-cache-by-key"));
}

#[test]
fn origins_that_no_browser_sends_are_refused_by_name() {
    for origin in [
        "",
        "example.com",
        "https://",
        "https://a/",
        "https://a/b",
        "https://a?b",
        "https://*.a",
        "https://A",
        "HTTPS://a",
        "https://u@a",
        "https://a:b",
        "https://a:",
        "https://a:70000",
        "https://a b",
        "https://\u{e9}",
        "**",
    ] {
        let message = refusal(&["--cors-allow-origin", origin], None);
        assert!(message.contains("--cors-allow-origin"), "{message}");
    }
    for origin in [
        "https://a",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://[::1]:80",
        "chrome-extension://abc",
        "null",
    ] {
        let cli = read(&["--cors-allow-origin", origin], None).expect(origin);
        assert_eq!(cli.into_config().http.cors_allow_origin, [origin]);
    }
    let cli = read(&["--cors-allow-origin", "https://a,*"], None).expect("any");
    assert!(cli.into_config().http.cors_allow_origin.is_empty());
}

#[test]
fn origins_may_be_repeated() {
    let args = [
        "--cors-allow-origin",
        "http://a",
        "--cors-allow-origin",
        "http://b",
    ];
    assert_eq!(
        read(&args, None).expect("origins").http.cors_allow_origin,
        ["http://a", "http://b"]
    );
}

#[test]
fn an_ipv6_address_is_bracketed() {
    assert_eq!(
        read(&["--hostname", "::1", "-p", "80"], None)
            .expect("an address")
            .listen_address(),
        "[::1]:80"
    );
    assert_eq!(
        read(&["--hostname", "localhost"], None)
            .expect("an address")
            .listen_address(),
        "localhost:3000"
    );
}
