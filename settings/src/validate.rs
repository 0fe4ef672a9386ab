//! Checks over several flags. All run before anything is started.

use crate::cli::Cli;
use crate::flags::ModelImpl;
use crate::values::value_name;

impl Cli {
    /// Returns what is wrong, what is allowed and what to do.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.report.env {
            return Ok(());
        }
        if self.model.model_id.is_none() {
            return Err(
                "--model-id (or the variable MODEL_ID) is missing; give a local folder, a local .gguf file, or a name \
                 on the Hugging Face hub, for example --model-id gpt2"
                    .to_owned(),
            );
        }
        if let Some(reason) = self.legacy.refusal() {
            return Err(reason);
        }
        self.validate_keys()?;
        self.validate_edge()?;
        self.validate_lengths()?;
        self.validate_shards()?;
        self.validate_compile()?;
        self.validate_speculation()?;
        self.validate_files()
    }

    /// Messages show no key.
    fn validate_keys(&self) -> Result<(), String> {
        let keys = &self.http.api_key;
        if keys.iter().any(|key| key.0.is_empty()) {
            return Err(
                "--api-key (or the variable API_KEY) is empty, or has an empty key between commas, which anybody could \
                 send; give a key, or remove it to serve without keys"
                    .to_owned(),
            );
        }
        let can_be_sent = |key: &str| key.bytes().all(|byte| byte.is_ascii_graphic());
        if !keys.iter().all(|key| can_be_sent(&key.0)) {
            return Err(
                "--api-key (or the variable API_KEY) has characters that cannot be sent in a header; use visible ASCII \
                 only"
                    .to_owned(),
            );
        }
        if !keys.is_empty() || self.http.api_key_file.is_some() {
            return Ok(());
        }
        let needs_keys = [
            (
                "--isolate-cache-by-key",
                self.batching.isolate_cache_by_key == Some(true),
            ),
            (
                "--max-requests-per-key",
                self.limits.max_requests_per_key.is_some(),
            ),
            (
                "--max-tokens-per-minute-per-key",
                self.limits.max_tokens_per_minute_per_key.is_some(),
            ),
        ];
        match needs_keys.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(()),
            Some((flag, _)) => Err(format!(
                "{flag} needs API keys to tell requests apart by; give --api-key or --api-key-file, or remove it"
            )),
        }
    }

    /// Checks certificate and ports. The launcher looks into the files.
    fn validate_edge(&self) -> Result<(), String> {
        let http = &self.http;
        match (&http.tls_cert, &http.tls_key) {
            (Some(_), None) => {
                return Err(
                    "--tls-cert is given without --tls-key, the private key of the certificate; give both or neither"
                        .to_owned(),
                );
            }
            (None, Some(_)) => {
                return Err(
                    "--tls-key is given without --tls-cert, the certificate of the key; give both or neither".to_owned(),
                );
            }
            (Some(_), Some(_)) if http.uds.is_some() => {
                return Err(
                    "--tls-cert encrypts a port, and --uds is a socket of this machine that only its user can reach; \
                     remove one of them"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if http.uds.is_none() && http.prometheus_port == Some(http.port) {
            return Err(format!(
                "--prometheus-port {} is also --port, which serves /metrics anyway; give another port, or remove it",
                http.port
            ));
        }
        Ok(())
    }

    fn validate_lengths(&self) -> Result<(), String> {
        let (new, old) = (
            self.limits.max_input_tokens,
            self.old_names.max_input_length,
        );
        if new.is_some() && old.is_some() {
            return Err(
                "--max-input-length is the old name of --max-input-tokens and both are given; remove \
                 --max-input-length (or the variable MAX_INPUT_LENGTH)"
                    .to_owned(),
            );
        }
        if let (Some(input), Some(total)) = (new.or(old), self.limits.max_total_tokens)
            && input >= total
        {
            return Err(format!(
                "--max-input-tokens {input} is not below --max-total-tokens {total}, which counts prompt and answer; \
                 lower the first or raise the second"
            ));
        }
        if let (Some(batch), Some(total)) = (
            self.batching.max_batch_total_tokens,
            self.limits.max_total_tokens,
        ) && batch < total
        {
            return Err(format!(
                "--max-batch-total-tokens {batch} is less than --max-total-tokens {total}, so that the longest request \
                 would not fit; raise the first or lower the second"
            ));
        }
        Ok(())
    }

    /// Checks what can be told without the model; the shard checks the rest.
    fn validate_compile(&self) -> Result<(), String> {
        let run = &self.run;
        if !run.compile {
            return Ok(());
        }
        if let Some(method) = run.quantize {
            return Err(format!(
                "--quantize {} is not compatible with --compile; remove one of them",
                value_name(method)
            ));
        }
        if matches!(run.model_impl, ModelImpl::Batched | ModelImpl::Solo) {
            return Err(format!(
                "--compile needs the paged path and is not compatible with --model-impl {}; remove one of them",
                value_name(run.model_impl)
            ));
        }
        if let Some(shards) = self.processes.num_shard.filter(|shards| *shards > 1) {
            return Err(format!(
                "--compile needs one shard and is not compatible with --num-shard {shards}; remove one of them"
            ));
        }
        Ok(())
    }

    /// Checks what can be told without the model; the shard checks the rest.
    fn validate_speculation(&self) -> Result<(), String> {
        let (speculate, model_impl) = (self.batching.speculate, self.run.model_impl);
        if speculate > 0 && matches!(model_impl, ModelImpl::Batched | ModelImpl::Solo) {
            return Err(format!(
                "--speculate needs the paged path and is not compatible with --model-impl {}; remove one of them",
                value_name(model_impl)
            ));
        }
        Ok(())
    }

    fn validate_shards(&self) -> Result<(), String> {
        match (self.processes.sharded, self.processes.num_shard) {
            (Some(false), Some(shards)) if shards > 1 => Err(format!(
                "--sharded false contradicts --num-shard {shards}; remove one of them"
            )),
            (Some(true), Some(1)) => Err(
                "--sharded true needs at least two shards, and --num-shard is 1; remove one of them"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    fn validate_files(&self) -> Result<(), String> {
        let folder = &self.run.generation_config;
        let is_word = ["auto", "none"]
            .iter()
            .any(|word| folder.as_os_str() == *word);
        if !is_word && !folder.join("generation_config.json").is_file() {
            return Err(format!(
                "--generation-config is {}, which has no generation_config.json; give auto, none, or a folder with \
                 that file",
                folder.display()
            ));
        }
        if let Some(path) = &self.names.tokenizer_config_path
            && !path.is_file()
        {
            return Err(format!(
                "--tokenizer-config-path: there is no file {}; give the path of a tokenizer_config.json",
                path.display()
            ));
        }
        Ok(())
    }
}
