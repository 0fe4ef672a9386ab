//! Choice of the variables that shards get. They run a model's Python code, which must not see keys and tokens.

/// Variables that a shard needs, where they are set.
const NAMES: [&str; 28] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TZDIR",
    "TERM",
    "NO_COLOR",
    "TMPDIR",
    "TEMP",
    "TMP",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CC",
    "CXX",
    "LOG_LEVEL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NO_PROXY",
    "no_proxy",
    "KINETO_LOG_LEVEL",
    "USE_LIBUV",
    "TOKENIZERS_PARALLELISM",
];

/// Prefixes of further variables: of the C library, Python, PyTorch and its libraries, Transformers and the hub's
/// cache.
const PREFIXES: [&str; 37] = [
    "LC_",
    "LD_",
    "XDG_",
    "GLIBC_",
    "MALLOC_",
    "PYTHON",
    "GRIDWORK_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "OPENBLAS_",
    "NUMEXPR_",
    "TORCH",
    "PYTORCH_",
    "ATEN_",
    "THP_",
    "TRITON_",
    "CUDA",
    "CUDNN_",
    "CUBLAS_",
    "NCCL_",
    "NVIDIA_",
    "NVTE_",
    "GLOO_",
    "TP_",
    "UCX_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "GRPC_",
    "OTEL_",
];

/// Words in the names of variables that hold secrets.
const SECRET_WORDS: [&str; 8] = [
    "TOKEN",
    "SECRET",
    "PASSW",
    "CREDENTIAL",
    "API_KEY",
    "ACCESS_KEY",
    "PRIVATE",
    "HEADERS",
];

/// Names with such a word that hold no secret.
const NO_SECRETS: [&str; 2] = ["TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_IMPLICIT_TOKEN"];

/// Rule for the variables of shards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardEnvironment {
    /// Variables that the user adds (`--shard-env`).
    pub also: Vec<String>,
    /// True if shards run Python code of the model: then they get no headers for the collector of traces.
    pub runs_code: bool,
}

impl ShardEnvironment {
    /// Tells whether a variable is passed on.
    pub fn keeps(&self, name: &str) -> bool {
        if self.also.iter().any(|also| also == name) {
            return true;
        }
        let wanted = NAMES.contains(&name) || PREFIXES.iter().any(|start| name.starts_with(start));
        let upper = name.to_ascii_uppercase();
        let is_secret = SECRET_WORDS.iter().any(|word| upper.contains(word));
        let for_traces = !self.runs_code && name.starts_with("OTEL_");
        wanted && (!is_secret || for_traces || NO_SECRETS.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_get_what_they_need_and_no_secrets() {
        let plain = ShardEnvironment::default();
        for kept in [
            "PATH",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "CUDA_VISIBLE_DEVICES",
            "HF_HOME",
            "HF_HUB_OFFLINE",
            "OMP_WAIT_POLICY",
            "PYTHONPATH",
            "TOKENIZERS_PARALLELISM",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ] {
            assert!(plain.keeps(kept), "{kept}");
        }
        for dropped in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HUGGINGFACE_HUB_TOKEN",
            "API_KEY",
            "OPENAI_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "DATABASE_URL",
            "HTTPS_PROXY",
            "SSH_AUTH_SOCK",
        ] {
            assert!(!plain.keeps(dropped), "{dropped}");
        }
        let with_code = ShardEnvironment {
            also: vec!["MY_DATA".to_owned(), "MY_TOKEN".to_owned()],
            runs_code: true,
        };
        assert!(!with_code.keeps("OTEL_EXPORTER_OTLP_HEADERS"));
        assert!(!with_code.keeps("OTEL_EXPORTER_OTLP_TRACES_HEADERS"));
        assert!(with_code.keeps("OTEL_RESOURCE_ATTRIBUTES"));
        assert!(with_code.keeps("MY_DATA") && with_code.keeps("MY_TOKEN"));
    }
}
