//! Tests of values that the command line takes and refuses.

use clap::CommandFactory;

use crate::flags::{Attention, Dtype, ModelImpl};
use crate::{Cli, try_parse};

fn parse(args: &[&str]) -> Result<Cli, String> {
    try_parse([&["gridwork"], args].concat()).map_err(|error| error.to_string())
}

fn parse_for_model(args: &[&str]) -> Result<Cli, String> {
    parse(&[&["--model-id", "m"], args].concat())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_a_variable_except_two() {
    for arg in Cli::command().get_arguments() {
        let flag = arg.get_long().expect("a flag").to_owned();
        let expected = match flag.as_str() {
            "env" | "parent-link" => None,
            "hostname" => Some("GRIDWORK_HOSTNAME".to_owned()),
            "prometheus-port" => Some("GRIDWORK_PROMETHEUS_PORT".to_owned()),
            "server-command" => Some("GRIDWORK_SERVER".to_owned()),
            "router-command" => Some("GRIDWORK_ROUTER".to_owned()),
            flag => Some(flag.to_uppercase().replace('-', "_")),
        };
        let variable = arg
            .get_env()
            .map(|name| name.to_string_lossy().into_owned());
        assert_eq!(variable, expected, "--{flag}");
    }
}

#[test]
fn a_plain_call_has_the_documented_defaults() {
    let cli = parse(&["--model-id", "gpt2"]).unwrap();
    assert_eq!(cli.http.port, 3000);
    assert_eq!(cli.http.hostname, "0.0.0.0");
    assert_eq!(cli.http.payload_limit, 2_000_000);
    assert_eq!(cli.http.graceful_termination_timeout, 90);
    assert_eq!(cli.limits.max_concurrent_requests, 128);
    assert_eq!(cli.limits.max_n, 128);
    assert_eq!(cli.batching.max_batch_prefill_tokens, 512);
    assert_eq!(cli.batching.max_batch_size, 128);
    assert_eq!(cli.batching.speculate, 0);
    assert_eq!(cli.run.dtype, Dtype::Auto);
    assert!(!cli.model.trust_remote_code);
    assert!(cli.processes.device.is_none());
    assert!(cli.http.api_key.is_empty());
}

#[test]
fn booleans_are_flags_and_take_values() {
    for (given, expected) in [
        ("--trust-remote-code", true),
        ("--trust-remote-code=true", true),
        ("--trust-remote-code=1", true),
        ("--trust-remote-code=false", false),
        ("--trust-remote-code=0", false),
    ] {
        let cli = parse_for_model(&[given]).unwrap();
        assert_eq!(cli.model.trust_remote_code, expected, "{given}");
    }
    assert!(parse_for_model(&["--trust-remote-code=perhaps"]).is_err());
    let isolates = |given: &str| {
        let cli = parse_for_model(&["--api-key", "a,b", given]).unwrap();
        cli.batching.isolate_cache_by_key
    };
    assert_eq!(isolates("--isolate-cache-by-key"), Some(true));
    assert_eq!(isolates("--isolate-cache-by-key=false"), Some(false));
}

#[test]
fn aliases_of_values_are_understood() {
    for (given, expected) in [
        ("transformers", ModelImpl::Auto),
        ("native", ModelImpl::Paged),
        ("solo", ModelImpl::Solo),
    ] {
        let cli = parse_for_model(&["--model-impl", given]).unwrap();
        assert_eq!(cli.run.model_impl, expected);
    }
    let cli = parse_for_model(&["--attention", "torch"]).unwrap();
    assert_eq!(cli.run.attention, Attention::Sdpa);
}

#[test]
fn wrong_values_are_refused_by_flag_with_what_is_allowed() {
    for (flag, value, expected) in [
        ("--port", "0", "1..=65535"),
        ("--port", "70000", "1..=65535"),
        ("--hostname", "", "a value is required"),
        ("--dtype", "int8", "float32"),
        ("--device", "tpu", "cpu, cuda"),
        ("--cuda-memory-fraction", "1.5", "at most 1"),
        ("--kv-cache-memory", "lots", "4GiB"),
        ("--validation-workers", "0", "1..=4096"),
        ("--validation-workers", "5000", "1..=4096"),
        ("--speculate", "17", "0..=16"),
        ("--speculate", "-1", "0..=16"),
        ("--speculate", "medusa", "invalid digit"),
        ("--block-size", "1025", "1..=1024"),
        ("--max-concurrent-requests", "0", "1.."),
        ("--max-best-of", "0", "1.."),
        ("--max-batch-prefill-tokens", "0", "1.."),
        ("--max-batch-size", "0", "1.."),
        ("--payload-limit", "0", "1.."),
        ("--max-total-tokens", "1", "2.."),
        ("--queue-timeout", "18446744073709551615", "1..=31536000"),
        ("--startup-timeout", "0", "1..=31536000"),
        (
            "--attention",
            "flash",
            "auto, cpu, flash-attn, varlen, triton, sdpa, reference",
        ),
        ("--cuda-graphs", "0,1", "0 stands alone"),
        ("--cpu-threads", "0", "at least 1"),
        ("--cpu-threads", "-1", "at least 1"),
        ("--cpu-threads", "many", "at least 1"),
        ("--otlp-endpoint", "localhost:4317", "http://"),
        ("--otlp-endpoint", "https://localhost:4317", "http://"),
        ("--otlp-endpoint", "http://a b", "http://"),
        ("--otlp-sampling-ratio", "1.5", "from 0 to 1"),
        ("--otlp-sampling-ratio", "nan", "from 0 to 1"),
        ("--log-level", "loud", "debug"),
    ] {
        let message = parse_for_model(&[flag, value]).unwrap_err();
        assert!(message.contains(expected), "{flag} {value}: {message}");
        assert!(message.contains(flag), "{flag} {value}: {message}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (args, expected) in [
        (
            &["--max-input-length", "5", "--max-input-tokens", "5"][..],
            "old name",
        ),
        (
            &["--max-input-tokens", "10", "--max-total-tokens", "10"],
            "--max-input-tokens 10 is not below --max-total-tokens 10",
        ),
        (
            &["--max-total-tokens", "10", "--max-batch-total-tokens", "9"],
            "the longest request would not fit",
        ),
        (&["--sharded", "false", "--num-shard", "2"], "contradicts"),
        (&["--sharded", "true", "--num-shard", "1"], "at least two"),
        (
            &["--compile", "--quantize", "int8"],
            "--quantize int8 is not compatible with --compile",
        ),
        (&["--compile", "--model-impl", "solo"], "--model-impl solo"),
        (&["--compile", "--num-shard", "2"], "one shard"),
        (
            &["--speculate", "2", "--model-impl", "batched"],
            "--model-impl batched",
        ),
        (
            &["--generation-config", "/nowhere"],
            "/nowhere, which has no generation_config.json",
        ),
        (
            &["--tokenizer-config-path", "/nowhere/t.json"],
            "/nowhere/t.json",
        ),
    ] {
        let message = parse_for_model(args).unwrap_err();
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert!(parse(&[]).unwrap_err().contains("--model-id"));
    assert!(parse(&["--env"]).is_ok());
}

#[test]
fn the_old_name_of_a_limit_is_read_as_the_new_one() {
    let cli = parse_for_model(&["--max-input-length", "7"]).unwrap();
    assert_eq!(cli.limits.max_input_tokens, Some(7));
}

#[test]
fn an_empty_key_does_not_open_the_server() {
    for keys in [
        &["--api-key", ""][..],
        &["--api-key="],
        &["--api-key", "a,"],
        &["--api-key", ",a"],
        &["--api-key", "a,,b"],
        &["--api-key", "a", "--api-key", ""],
        &["--api-key", ","],
    ] {
        let message = parse_for_model(keys).unwrap_err();
        assert!(message.contains("empty key"), "{keys:?}: {message}");
    }
    let cli = parse_for_model(&["--api-key", "a,b", "--api-key", "c"]).unwrap();
    assert_eq!(cli.http.api_key.len(), 3);
    let message = parse_for_model(&["--isolate-cache-by-key"]).unwrap_err();
    assert!(message.contains("--api-key"), "{message}");
}

#[test]
fn a_key_is_never_shown() {
    let message = parse_for_model(&["--api-key", "hu sh"]).unwrap_err();
    assert!(message.contains("visible ASCII") && !message.contains("hu sh"));
    let cli = parse_for_model(&["--api-key", "hush"]).unwrap();
    assert!(!format!("{cli:?}").contains("hush"));
}

#[test]
fn origins_that_no_browser_sends_are_refused() {
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
        let message = parse_for_model(&["--cors-allow-origin", origin]).unwrap_err();
        assert!(message.contains("--cors-allow-origin"), "{message}");
    }
    for origin in [
        "*",
        "null",
        "https://a",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://[::1]:80",
        "chrome-extension://abc",
    ] {
        let cli = parse_for_model(&["--cors-allow-origin", origin]).unwrap();
        assert_eq!(cli.http.cors_allow_origin, [origin]);
    }
    let args = [
        "--cors-allow-origin",
        "http://a",
        "--cors-allow-origin",
        "http://b",
    ];
    let cli = parse_for_model(&args).unwrap();
    assert_eq!(cli.http.cors_allow_origin, ["http://a", "http://b"]);
}

#[test]
fn old_flags_are_refused_only_when_they_would_change_answers() {
    for flag in [
        "--quantize",
        "--lora-adapters",
        "--kv-cache-dtype",
        "--rope-scaling",
    ] {
        let message = parse_for_model(&[flag, "x"]).unwrap_err();
        assert!(message.contains(flag), "{message}");
    }
    let args = ["--waiting-served-ratio", "2", "--disable-custom-kernels"];
    let cli = parse_for_model(&args).unwrap();
    let warnings = cli.legacy.warnings().join("\n");
    for flag in ["--waiting-served-ratio", "--disable-custom-kernels"] {
        assert!(warnings.contains(flag), "{warnings}");
    }
    assert!(!warnings.contains("--ngrok"));
}

#[test]
fn the_watermarks_settings_are_bounded() {
    let args = ["--watermark-gamma", "0.25", "--watermark-delta", "-2"];
    let limits = parse_for_model(&args).unwrap().limits;
    assert_eq!(
        (limits.watermark_gamma, limits.watermark_delta),
        (0.25, -2.0)
    );
    for (flag, value) in [
        ("--watermark-gamma", "0"),
        ("--watermark-gamma", "1.5"),
        ("--watermark-gamma", "nan"),
        ("--watermark-delta", "101"),
        ("--watermark-delta", "nan"),
    ] {
        let message = parse_for_model(&[flag, value]).unwrap_err();
        assert!(message.contains(flag), "{message}");
    }
}
