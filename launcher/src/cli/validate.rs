//! Checks over several values of the command line. All run before anything is started.

use super::{Cli, LimitArgs, ModelImpl, value_name};

impl LimitArgs {
    /// Longest prompt, by its new name or its old one.
    pub fn max_input(&self) -> Option<u32> {
        self.max_input_tokens.or(self.max_input_length)
    }
}

impl Cli {
    /// Returns what is wrong and what is allowed.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.output.env {
            return Ok(());
        }
        if self.model.model_id.is_none() {
            return Err(
                "--model-id (or the variable MODEL_ID) is missing: give a local folder, a local .gguf file, \
                 or a name on the Hugging Face hub, for example --model-id gpt2"
                    .to_owned(),
            );
        }
        if let Some(reason) = self.legacy.refusal() {
            return Err(reason);
        }
        self.validate_keys()?;
        self.validate_lengths()?;
        self.validate_shards()?;
        self.validate_compile()?;
        self.validate_speculation()?;
        let folder = &self.model.generation_config;
        let is_word = ["auto", "none"]
            .iter()
            .any(|word| folder.as_os_str() == *word);
        if !is_word && !folder.join("generation_config.json").is_file() {
            return Err(format!(
                "--generation-config {}: this is neither `auto` nor `none`, nor a folder with a generation_config.json",
                folder.display()
            ));
        }
        if let Some(path) = &self.model.tokenizer_config_path
            && !path.is_file()
        {
            return Err(format!(
                "--tokenizer-config-path: there is no file {}",
                path.display()
            ));
        }
        Ok(())
    }

    /// Messages show no key.
    fn validate_keys(&self) -> Result<(), String> {
        let keys = &self.http.api_key;
        if keys.iter().any(|key| key.0.is_empty()) {
            return Err(
                "--api-key (or the variable API_KEY) is empty, or has an empty key between commas: anybody could send \
                 that; give a key, or remove it to serve without keys"
                    .to_owned(),
            );
        }
        let can_be_sent = |key: &str| key.bytes().all(|byte| byte.is_ascii_graphic());
        if !keys.iter().all(|key| can_be_sent(&key.0)) {
            return Err(
                "--api-key (or the variable API_KEY) has characters that cannot be sent in a header (only visible \
                 ASCII can)"
                    .to_owned(),
            );
        }
        if self.batching.isolate_cache_by_key == Some(true) && keys.is_empty() {
            return Err(
                "--isolate-cache-by-key needs API keys to tell requests apart by: give --api-key, or remove it"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn validate_lengths(&self) -> Result<(), String> {
        if self.limits.max_input_tokens.is_some() && self.limits.max_input_length.is_some() {
            return Err(
                "--max-input-length is the old name of --max-input-tokens and both are given: \
                 remove --max-input-length (or the variable MAX_INPUT_LENGTH)"
                    .to_owned(),
            );
        }
        if let (Some(input), Some(total)) = (self.limits.max_input(), self.limits.max_total_tokens)
            && input >= total
        {
            return Err(format!(
                "--max-input-tokens {input} must be below --max-total-tokens {total}, which counts prompt and answer"
            ));
        }
        if let (Some(batch), Some(total)) = (
            self.batching.max_batch_total_tokens,
            self.limits.max_total_tokens,
        ) && batch < total
        {
            return Err(format!(
                "--max-batch-total-tokens {batch} must be at least --max-total-tokens {total}: one request must fit"
            ));
        }
        Ok(())
    }

    /// What can be told without the model; the shard looks at the rest.
    fn validate_compile(&self) -> Result<(), String> {
        let model = &self.model;
        if let (Some(method), true) = (model.quantize, model.compile) {
            return Err(format!(
                "--quantize {} does not go with --compile: remove one of them",
                value_name(method)
            ));
        }
        if !model.compile {
            return Ok(());
        }
        if matches!(model.model_impl, ModelImpl::Batched | ModelImpl::Solo) {
            return Err(format!(
                "--compile goes with the paged path alone, not with --model-impl {}: remove one of them",
                value_name(model.model_impl)
            ));
        }
        if let Some(shards) = self.processes.num_shard.filter(|shards| *shards > 1) {
            return Err(format!(
                "--compile goes with one shard, not with --num-shard {shards}: remove one of them"
            ));
        }
        Ok(())
    }

    /// Likewise.
    fn validate_speculation(&self) -> Result<(), String> {
        let (speculate, model_impl) = (self.batching.speculate, self.model.model_impl);
        if speculate > 0 && matches!(model_impl, ModelImpl::Batched | ModelImpl::Solo) {
            return Err(format!(
                "--speculate goes with the paged path alone, not with --model-impl {}: remove one of them",
                value_name(model_impl)
            ));
        }
        Ok(())
    }

    fn validate_shards(&self) -> Result<(), String> {
        match (self.processes.sharded, self.processes.num_shard) {
            (Some(false), Some(shards)) if shards > 1 => Err(format!(
                "--sharded false contradicts --num-shard {shards}: remove one of them"
            )),
            (Some(true), Some(1)) => Err(
                "--sharded true needs at least two shards, --num-shard is 1: remove one of them"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory;

    use super::super::parse::try_parse;
    use super::super::*;

    fn parse(args: &[&str]) -> Result<Cli, String> {
        // The environment of whoever runs the tests must not matter.
        let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
        let args = ["gridwork"].iter().chain(args).map(OsString::from);
        try_parse(command, args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_except_env() {
        for arg in Cli::command().get_arguments() {
            let id = arg.get_id().as_str();
            let expected = match id {
                "env" => None,
                "hostname" => Some("GRIDWORK_HOSTNAME".to_owned()),
                "server_command" => Some("GRIDWORK_SERVER".to_owned()),
                "router_command" => Some("GRIDWORK_ROUTER".to_owned()),
                id => Some(id.to_uppercase()),
            };
            let variable = arg
                .get_env()
                .map(|name| name.to_string_lossy().into_owned());
            assert_eq!(variable, expected, "--{id}");
        }
    }

    #[test]
    fn a_plain_call_has_the_documented_defaults() {
        let cli = parse(&["--model-id", "gpt2"]).unwrap();
        assert_eq!(cli.http.port, 3000);
        assert_eq!(cli.http.hostname, "0.0.0.0");
        assert_eq!(cli.limits.max_concurrent_requests, 128);
        assert_eq!(cli.model.dtype, Dtype::Auto);
        assert!(!cli.model.trust_remote_code);
        assert!(cli.processes.device.is_none());
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
            let cli = parse(&["--model-id", "m", given]).unwrap();
            assert_eq!(cli.model.trust_remote_code, expected, "{given}");
        }
        assert!(parse(&["--model-id", "m", "--trust-remote-code=perhaps"]).is_err());
    }

    #[test]
    fn aliases_of_model_impl_are_understood() {
        for (given, expected) in [
            ("transformers", ModelImpl::Auto),
            ("native", ModelImpl::Paged),
            ("solo", ModelImpl::Solo),
        ] {
            let cli = parse(&["--model-id", "m", "--model-impl", given]).unwrap();
            assert_eq!(cli.model.model_impl, expected);
        }
    }

    #[test]
    fn torch_is_another_name_of_sdpa() {
        let cli = parse(&["--model-id", "m", "--attention", "torch"]).unwrap();
        assert_eq!(cli.model.attention, Attention::Sdpa);
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        for (args, expected) in [
            (&["--port", "0"][..], "1..=65535"),
            (&["--dtype", "int8"], "float32"),
            (&["--device", "tpu"], "cpu, cuda"),
            (&["--cuda-memory-fraction", "1.5"], "at most 1"),
            (&["--kv-cache-memory", "lots"], "4GiB"),
            (&["--validation-workers", "0"], "1.."),
            (&["--speculate", "17"], "0..=16"),
            (&["--speculate", "-1"], "--speculate"),
            (&["--speculate", "medusa"], "--speculate"),
            (
                &["--attention", "flash"],
                "auto, cpu, flash-attn, varlen, triton, sdpa, reference",
            ),
            (&["--cuda-graphs", "0,1"], "0 stands alone"),
            (&["--cpu-threads", "0"], "at least 1"),
            (&["--cpu-threads", "-1"], "at least 1"),
            (&["--cpu-threads", "many"], "at least 1"),
            (&["--otlp-endpoint", "localhost:4317"], "http://"),
            (&["--log-level", "loud"], "debug"),
        ] {
            let args = [&["--model-id", "m"], args].concat();
            let message = parse(&args).unwrap_err();
            assert!(message.contains(expected), "{args:?}: {message}");
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
                "below --max-total-tokens",
            ),
            (
                &["--max-total-tokens", "10", "--max-batch-total-tokens", "9"],
                "one request must fit",
            ),
            (&["--sharded", "false", "--num-shard", "2"], "contradicts"),
            (&["--sharded", "true", "--num-shard", "1"], "at least two"),
            (&["--compile", "--model-impl", "solo"], "--model-impl solo"),
            (&["--compile", "--num-shard", "2"], "one shard"),
            (
                &["--speculate", "2", "--model-impl", "batched"],
                "--model-impl batched",
            ),
            (
                &["--tokenizer-config-path", "/nowhere/t.json"],
                "/nowhere/t.json",
            ),
        ] {
            let args = [&["--model-id", "m"], args].concat();
            let message = parse(&args).unwrap_err();
            assert!(message.contains(expected), "{args:?}: {message}");
        }
        assert!(parse(&[]).unwrap_err().contains("--model-id"));
        assert!(parse(&["--env"]).is_ok());
    }

    #[test]
    fn an_empty_key_does_not_open_the_server() {
        for keys in [
            &["--api-key", ""][..],
            &["--api-key="],
            &["--api-key", "a,"],
            &["--api-key", "a", "--api-key", ""],
            &["--api-key", ","],
        ] {
            let args = [&["--model-id", "m"], keys].concat();
            let message = parse(&args).unwrap_err();
            assert!(message.contains("--api-key"), "{args:?}: {message}");
        }
        let message = parse(&["--model-id", "m", "--api-key", "hu sh"]).unwrap_err();
        assert!(message.contains("visible ASCII") && !message.contains("hu sh"));
        let cli = parse(&["--model-id", "m", "--api-key", "a,b", "--api-key", "c"]).unwrap();
        assert_eq!(cli.http.api_key.len(), 3);
        let message = parse(&["--model-id", "m", "--isolate-cache-by-key"]).unwrap_err();
        assert!(message.contains("--api-key"), "{message}");
    }

    #[test]
    fn origins_that_no_browser_sends_are_refused() {
        for origin in [
            "",
            "example.com",
            "https://",
            "https://a/b",
            "https://A",
            "https://u@a",
            "https://a:b",
            "**",
        ] {
            let args = ["--model-id", "m", "--cors-allow-origin", origin];
            let message = parse(&args).unwrap_err();
            assert!(message.contains("--cors-allow-origin"), "{message}");
        }
        for origin in [
            "*",
            "null",
            "https://a",
            "http://[::1]:80",
            "chrome-extension://abc",
        ] {
            assert!(parse(&["--model-id", "m", "--cors-allow-origin", origin]).is_ok());
        }
    }

    #[test]
    fn old_flags_are_refused_only_when_they_would_change_answers() {
        for flag in [
            "--quantize",
            "--lora-adapters",
            "--kv-cache-dtype",
            "--rope-scaling",
        ] {
            let message = parse(&["--model-id", "m", flag, "x"]).unwrap_err();
            assert!(message.contains(flag), "{message}");
        }
        let cli = parse(&[
            "--model-id",
            "m",
            "--watermark-delta",
            "-2",
            "--disable-custom-kernels",
        ])
        .unwrap();
        let warnings = cli.legacy.warnings().join("\n");
        for flag in ["--watermark-delta", "--disable-custom-kernels"] {
            assert!(warnings.contains(flag), "{warnings}");
        }
        assert!(!warnings.contains("--ngrok"));
    }
}
