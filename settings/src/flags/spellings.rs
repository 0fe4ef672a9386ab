//! Flags of vLLM, SGLang and `transformers serve` that mean what a flag here means, and those that mean something else.

/// Meaning of a flag of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The meaning of this flag, with the same values.
    Same(&'static str),
    /// The meaning of this flag, whose values have other names. Values that are not listed are refused.
    Values(&'static str, &'static [(&'static str, &'static str)]),
    /// A switch for arguments of ours; `off` stands for its negation, `--no-NAME` or `=false`.
    Switch {
        on: &'static [&'static str],
        off: &'static [&'static str],
    },
    /// A switch for what is always so. Accepted without effect; its negation is refused.
    Always(&'static str),
    /// A switch without a counterpart. Accepted without effect.
    Nothing(&'static str),
    /// Has one of these values here, always. Others are refused for the reason.
    Only(&'static [&'static str], &'static str),
    /// Refused; the text says what to do instead.
    Refused(&'static str),
}

/// Flags with the same meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spelling {
    /// Names without dashes. Underscores stand for hyphens.
    pub names: &'static [&'static str],
    pub meaning: Meaning,
}

const fn same(flag: &'static str, names: &'static [&'static str]) -> Spelling {
    Spelling {
        names,
        meaning: Meaning::Same(flag),
    }
}

const fn means(names: &'static [&'static str], meaning: Meaning) -> Spelling {
    Spelling { names, meaning }
}

use Meaning::{Always, Nothing, Only, Refused, Switch, Values};

const ONE_COPY: Meaning = Only(
    &["1"],
    "one server runs one copy of the model, which --num-shard splits over GPUs; start a server for each copy",
);
const NO_ADAPTERS: Meaning = Refused(
    "adapters are not available beside their base; serve the adapter's folder as --model-id",
);
const LOOKUP: Meaning =
    Refused("drafts come from the text so far and not from another model; give --speculate N");
const IN_REQUESTS: Meaning =
    Refused("a seed belongs to a request, as its `seed`; without one, seeds are random");
const TOKENIZER: Meaning =
    Refused("the tokenizer is the one in the model's folder; put its files there");
const ONE_LOG: Meaning = Nothing("requests are logged with --log-requests alone");
const PREFIX_CACHE: Meaning = Switch {
    on: &["--disable-prefix-cache=false"],
    off: &["--disable-prefix-cache=true"],
};
const NO_PREFIX_CACHE: Meaning = Switch {
    on: &["--disable-prefix-cache=true"],
    off: &["--disable-prefix-cache=false"],
};
const NO_GRAPHS: Meaning = Switch {
    on: &["--cuda-graphs=0"],
    off: &[],
};

/// Every such flag.
pub const SPELLINGS: &[Spelling] = &[
    same("model-id", &["model", "model-path", "force-model"]),
    same("model-impl", &["impl"]),
    same("huggingface-hub-cache", &["download-dir"]),
    means(
        &["torchao-config"],
        Values("quantize", &[("int8dq", "int8")]),
    ),
    means(
        &["quantization"],
        Refused(
            "quantized checkpoints are recognized by their config.json; remove it, or give --quantize int8 or int4 to \
             quantize while loading",
        ),
    ),
    means(
        &["attention-backend", "attn-implementation"],
        Values(
            "attention",
            &[
                ("auto", "auto"),
                ("triton", "triton"),
                ("triton_attn", "triton"),
                ("torch_native", "sdpa"),
                ("torch_sdpa", "sdpa"),
                ("sdpa", "sdpa"),
                ("eager", "reference"),
                ("flash_attn", "flash-attn"),
                ("flash_attention_2", "flash-attn"),
                ("fa2", "flash-attn"),
                ("fa3", "flash-attn"),
            ],
        ),
    ),
    means(
        &["is-embedding"],
        Switch {
            on: &["--task=embed"],
            off: &[],
        },
    ),
    means(
        &["runner", "convert"],
        Refused("give the task of the model: --task embed, classify or rerank"),
    ),
    means(&["tokenizer", "tokenizer-path"], TOKENIZER),
    means(
        &["tokenizer-mode"],
        Only(&["auto"], "the model's folder has one tokenizer"),
    ),
    means(
        &["load-format"],
        Only(
            &["auto", "safetensors"],
            "the format follows from the files of the model's folder",
        ),
    ),
    means(
        &["chat-template"],
        Refused(
            "give the template as `chat_template` in a file of the form of tokenizer_config.json, with \
             --tokenizer-config-path",
        ),
    ),
    means(
        &["hf-token"],
        Refused("set the variable HF_TOKEN, which `ps` does not show"),
    ),
    means(&["seed", "random-seed", "default-seed"], IN_REQUESTS),
    means(
        &["model-timeout"],
        Only(&["-1"], "the model stays loaded until the server ends"),
    ),
    same("hostname", &["host"]),
    same("otlp-endpoint", &["otlp-traces-endpoint"]),
    means(
        &["allowed-origins"],
        Refused("give origins with --cors-allow-origin, which may be repeated"),
    ),
    means(
        &["enable-cors"],
        Always("any origin may call, unless --cors-allow-origin names some"),
    ),
    same("tls-key", &["ssl-keyfile"]),
    same("tls-cert", &["ssl-certfile"]),
    means(
        &["ssl-ca-certs"],
        Refused("clients are known by API keys and not by certificates; give --api-key-file"),
    ),
    same("root-path", &["fastapi-root-path"]),
    means(
        &["uvicorn-log-level", "log-level-http"],
        Refused("all processes log with --log-level"),
    ),
    means(
        &[
            "disable-log-requests",
            "disable-uvicorn-access-log",
            "disable-log-stats",
        ],
        ONE_LOG,
    ),
    means(
        &["enable-log-requests"],
        Switch {
            on: &["--log-requests=true"],
            off: &["--log-requests=false"],
        },
    ),
    means(
        &["api-server-count"],
        Only(&["1"], "the router uses all cores with one process"),
    ),
    same("max-total-tokens", &["max-model-len", "context-length"]),
    same("max-top-n-tokens", &["max-logprobs"]),
    same("max-batch-size", &["max-num-seqs", "max-running-requests"]),
    same(
        "max-batch-prefill-tokens",
        &[
            "max-num-batched-tokens",
            "chunked-prefill-size",
            "max-prefill-tokens",
        ],
    ),
    same("block-size", &["page-size"]),
    same("kv-cache-memory", &["kv-cache-memory-bytes"]),
    same(
        "cuda-memory-fraction",
        &["gpu-memory-utilization", "mem-fraction-static"],
    ),
    means(&["enable-prefix-caching"], PREFIX_CACHE),
    means(&["disable-radix-cache"], NO_PREFIX_CACHE),
    means(&["enforce-eager", "disable-cuda-graph"], NO_GRAPHS),
    means(
        &["enable-chunked-prefill"],
        Always("long prompts are always computed in chunks"),
    ),
    means(
        &["continuous-batching"],
        Always("requests are always batched continuously"),
    ),
    means(
        &["async-scheduling"],
        Always("the next step is always scheduled while one runs"),
    ),
    means(
        &["enable-auto-tool-choice"],
        Always("calls of tools are always parsed; --tool-call-parser names another format"),
    ),
    means(
        &["scheduling-policy", "schedule-policy"],
        Only(
            &["fcfs", "priority"],
            "requests run by the `priority` that they have, then in the order of their arrival",
        ),
    ),
    means(
        &["swap-space", "cpu-offload-gb"],
        Only(&["0"], "nothing is moved from a GPU to the CPU's memory"),
    ),
    means(
        &[
            "speculative-config",
            "speculative-algorithm",
            "speculative-draft-model-path",
            "num-speculative-tokens",
            "speculative-num-draft-tokens",
        ],
        LOOKUP,
    ),
    means(&["enable-lora", "lora-modules", "lora-paths"], NO_ADAPTERS),
    same("num-shard", &["tensor-parallel-size", "tp", "tp-size"]),
    means(
        &[
            "pipeline-parallel-size",
            "pp",
            "pp-size",
            "data-parallel-size",
            "dp",
            "dp-size",
            "nnodes",
        ],
        ONE_COPY,
    ),
    means(
        &["dist-init-addr"],
        Refused("shards meet at --master-addr and --master-port"),
    ),
    means(
        &["distributed-executor-backend"],
        Only(&["mp"], "shards are processes of this machine"),
    ),
];

/// The spelling of a flag's name, and whether the name negates it (`no-NAME`).
pub fn find(name: &str) -> Option<(&'static Spelling, bool)> {
    let named = |name: &str| SPELLINGS.iter().find(|one| one.names.contains(&name));
    if let Some(found) = named(name) {
        return Some((found, false));
    }
    let negated = named(name.strip_prefix("no-")?)?;
    let is_switch = matches!(negated.meaning, Switch { .. } | Always(_) | Nothing(_));
    is_switch.then_some((negated, true))
}
