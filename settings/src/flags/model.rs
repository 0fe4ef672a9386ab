//! Flags of the model: where it comes from, what it is called, and how it is run.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize, Serializer};

/// Source of the model. Read by the launcher, which passes the answer on.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelSource {
    /// Local folder, local .gguf file, or name on the Hugging Face hub (`gpt2`, `org/name`)
    #[arg(long, env = "MODEL_ID")]
    pub model_id: Option<String>,

    /// Branch, tag or commit on the hub
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,

    /// Run Python code that comes with the model
    #[arg(long, env = "TRUST_REMOTE_CODE", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub trust_remote_code: bool,

    /// Branch, tag or commit of Python code that the model takes from another repository on the hub
    #[arg(long, env = "CODE_REVISION")]
    pub code_revision: Option<String>,

    /// Convert weights that are pickle files (.bin, .pt); only tensors are read from them
    #[arg(long, env = "ALLOW_PICKLE_WEIGHTS", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub allow_pickle_weights: bool,

    /// Folder for models that are downloaded from the hub [default: the hub library's own cache]
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE", value_name = "DIR")]
    pub huggingface_hub_cache: Option<PathBuf>,
}

/// Names, prompts and templates. Read by the router.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Model")]
pub struct Names {
    /// Name of the model in answers and in /v1/models; may be repeated, answers carry the first [default: --model-id]
    #[arg(long, env = "SERVED_MODEL_NAME", num_args = 1.., value_delimiter = ',', value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    pub served_model_name: Vec<String>,

    /// Name of the model's prompt to put before texts to embed, unless a request names another [default: what the
    /// model's files say]
    #[arg(
        long,
        env = "DEFAULT_PROMPT_NAME",
        value_name = "NAME",
        conflicts_with = "default_prompt"
    )]
    pub default_prompt_name: Option<String>,

    /// Text to put before texts to embed, unless a request names a prompt
    #[arg(
        long,
        env = "DEFAULT_PROMPT",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub default_prompt: Option<String>,

    /// File of the form of tokenizer_config.json, read in place of the model's for its chat template
    #[arg(long, env = "TOKENIZER_CONFIG_PATH", value_name = "FILE")]
    pub tokenizer_config_path: Option<PathBuf>,

    /// Format of tool calls in answers, by vLLM's or SGLang's name for it; auto: found by rendering the chat template;
    /// none: calls stay text
    #[arg(long, env = "TOOL_CALL_PARSER", default_value = "auto", value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    pub tool_call_parser: String,

    /// Format of reasoning in answers, as for --tool-call-parser
    #[arg(long, env = "REASONING_PARSER", default_value = "auto", value_name = "NAME",
          value_parser = NonEmptyStringValueParser::new())]
    pub reasoning_parser: String,
}

/// Ways to run the model. Read by the shards, under the names of `ShardConfig` in Python.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Model")]
pub struct ModelRun {
    /// Type of weights and activations; auto: the type in the model's config
    #[arg(long, env = "DTYPE", default_value = "auto")]
    pub dtype: Dtype,

    /// Path that runs the model; auto: the fastest that the model allows
    #[arg(long, env = "MODEL_IMPL", default_value = "auto")]
    pub model_impl: ModelImpl,

    /// Task that the model is served for; auto: the task that its folder describes
    #[arg(long, env = "TASK", default_value = "auto")]
    pub task: Task,

    /// Source of the defaults of requests: auto (generation_config.json of the model), none, or the folder of another
    /// generation_config.json
    #[arg(
        long,
        env = "GENERATION_CONFIG",
        default_value = "auto",
        value_name = "auto|none|DIR"
    )]
    pub generation_config: PathBuf,

    /// Implementation of attention; auto: the fastest that the device and the model allow
    #[arg(long, env = "ATTENTION", default_value = "auto")]
    pub attention: Attention,

    /// Run the model's own layers, without packed or fused ones in their place
    #[arg(long, env = "DISABLE_FUSION", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    #[serde(rename = "fuse", serialize_with = "negated")]
    pub disable_fusion: bool,

    /// Method that keeps the weights of linear layers and experts in 8 or 4 bits, on CPUs: less memory and faster
    /// decoding, at some cost in quality
    #[arg(long, env = "QUANTIZE", value_name = "METHOD")]
    pub quantize: Option<Quantize>,

    /// Compile the model for this machine: takes minutes once, later starts read it from the user's cache
    #[arg(long, env = "COMPILE", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub compile: bool,
}

fn negated<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(!value)
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    Auto,
    #[value(aliases = ["float", "fp32"])]
    Float32,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(aliases = ["half", "fp16"])]
    Float16,
}

/// Paths that run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelImpl {
    #[value(alias = "transformers")]
    Auto,
    #[value(alias = "native")]
    Paged,
    Batched,
    Solo,
}

/// Tasks that a model can be served for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    Auto,
    Generate,
    Embed,
    Classify,
    Rerank,
    FillMask,
}

/// Implementations of attention: one compiled for CPUs, three for GPUs, PyTorch's operations, the definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    Auto,
    Cpu,
    FlashAttn,
    Varlen,
    Triton,
    #[value(alias = "torch")]
    Sdpa,
    Reference,
}

/// Methods that turn weights into integers while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantize {
    /// One scale for each output feature; inputs in 8 bits
    Int8,
    /// A scale and an offset for each 32 weights; inputs in 8 bits
    Int4,
}
