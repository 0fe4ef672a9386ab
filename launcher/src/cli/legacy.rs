//! Flags of text-generation-inference whose mechanism does not exist here. Those that would change a model's answers if
//! they were ignored are refused; the others are accepted, so that a deployment can move over, and said to have no effect.

use clap::Args;

/// Hidden flags, kept as text: only their presence matters.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "From text-generation-inference")]
pub struct Legacy {
    #[arg(long, env = "WAITING_SERVED_RATIO", hide = true)]
    waiting_served_ratio: Option<String>,
    #[arg(long, env = "MAX_WAITING_TOKENS", hide = true)]
    max_waiting_tokens: Option<String>,
    #[arg(long, env = "WATERMARK_GAMMA", hide = true, allow_hyphen_values = true)]
    watermark_gamma: Option<String>,
    #[arg(long, env = "WATERMARK_DELTA", hide = true, allow_hyphen_values = true)]
    watermark_delta: Option<String>,
    #[arg(long, env = "NGROK", hide = true, num_args = 0..=1, default_missing_value = "true")]
    ngrok: Option<String>,
    #[arg(long, env = "NGROK_AUTHTOKEN", hide = true, hide_env_values = true)]
    ngrok_authtoken: Option<String>,
    #[arg(long, env = "NGROK_EDGE", hide = true)]
    ngrok_edge: Option<String>,
    #[arg(long, env = "USAGE_STATS", hide = true)]
    usage_stats: Option<String>,
    #[arg(long, env = "DISABLE_CUSTOM_KERNELS", hide = true, num_args = 0..=1, default_missing_value = "true")]
    disable_custom_kernels: Option<String>,
    #[arg(long, env = "PROMETHEUS_PORT", hide = true)]
    prometheus_port: Option<String>,
    #[arg(long, env = "WEIGHTS_CACHE_OVERRIDE", hide = true)]
    weights_cache_override: Option<String>,
    #[arg(long, env = "ENABLE_PREFILL_LOGPROBS", hide = true, num_args = 0..=1, default_missing_value = "true")]
    enable_prefill_logprobs: Option<String>,
    #[arg(long, env = "DISABLE_USAGE_STATS", hide = true, num_args = 0..=1, default_missing_value = "true")]
    disable_usage_stats: Option<String>,
    #[arg(long, env = "DISABLE_CRASH_REPORTS", hide = true, num_args = 0..=1, default_missing_value = "true")]
    disable_crash_reports: Option<String>,

    #[arg(long, env = "LORA_ADAPTERS", hide = true)]
    lora_adapters: Option<String>,
    #[arg(long, env = "KV_CACHE_DTYPE", hide = true)]
    kv_cache_dtype: Option<String>,
    #[arg(long, env = "ROPE_SCALING", hide = true)]
    rope_scaling: Option<String>,
    #[arg(long, env = "ROPE_FACTOR", hide = true)]
    rope_factor: Option<String>,
}

impl Legacy {
    /// One sentence for each flag that was given and does nothing.
    pub fn warnings(&self) -> Vec<String> {
        let harmless = [
            (
                "--waiting-served-ratio",
                &self.waiting_served_ratio,
                "prefill and decode share every step",
            ),
            (
                "--max-waiting-tokens",
                &self.max_waiting_tokens,
                "prefill and decode share every step",
            ),
            (
                "--watermark-gamma",
                &self.watermark_gamma,
                "there is no watermarking",
            ),
            (
                "--watermark-delta",
                &self.watermark_delta,
                "there is no watermarking",
            ),
            ("--ngrok", &self.ngrok, "there is no tunnel"),
            (
                "--ngrok-authtoken",
                &self.ngrok_authtoken,
                "there is no tunnel",
            ),
            ("--ngrok-edge", &self.ngrok_edge, "there is no tunnel"),
            (
                "--usage-stats",
                &self.usage_stats,
                "no usage statistics are sent",
            ),
            (
                "--disable-usage-stats",
                &self.disable_usage_stats,
                "no usage statistics are sent",
            ),
            (
                "--disable-crash-reports",
                &self.disable_crash_reports,
                "no crash reports are sent",
            ),
            (
                "--disable-custom-kernels",
                &self.disable_custom_kernels,
                "kernels are chosen by the shard",
            ),
            (
                "--prometheus-port",
                &self.prometheus_port,
                "metrics are at /metrics of the main port",
            ),
            (
                "--weights-cache-override",
                &self.weights_cache_override,
                "use --huggingface-hub-cache",
            ),
            (
                "--enable-prefill-logprobs",
                &self.enable_prefill_logprobs,
                "they are always available",
            ),
        ];
        harmless
            .iter()
            .filter(|(_, value, _)| value.is_some())
            .map(|(flag, _, why)| format!("{flag} has no effect: {why}"))
            .collect()
    }

    /// The reason to refuse the command line, when a flag was given that would change the model's answers.
    pub fn refusal(&self) -> Option<String> {
        let refused = [
            (
                "--lora-adapters",
                "LORA_ADAPTERS",
                self.lora_adapters.as_ref(),
                "adapters are not available",
            ),
            (
                "--kv-cache-dtype",
                "KV_CACHE_DTYPE",
                self.kv_cache_dtype.as_ref(),
                "the cache has the model's dtype (see --dtype)",
            ),
            (
                "--rope-scaling",
                "ROPE_SCALING",
                self.rope_scaling.as_ref(),
                "set rope_parameters in the model's config.json",
            ),
            (
                "--rope-factor",
                "ROPE_FACTOR",
                self.rope_factor.as_ref(),
                "set rope_parameters in the model's config.json",
            ),
        ];
        refused.iter().find(|(_, _, value, _)| value.is_some()).map(|(flag, variable, _, why)| {
            format!(
                "{flag} (or the variable {variable}) is not supported: {why}. Ignoring it would change the model's \
                 answers; remove it to go on"
            )
        })
    }
}
