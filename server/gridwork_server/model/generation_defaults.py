"""Reads a model's default values for requests from its generation_config.json.

Like `generate()` of Transformers, it reads that file, or else the same keys of config.json, by Transformers' own
reader. `KEYS` says what happens to every key.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from gridwork_server.errors import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

    from gridwork_server._proto import shard_pb2 as pb

READ, IGNORED, WITHOUT_EFFECT = "read", "ignored", "without effect"

KEYS: dict[str, str] = {
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"), READ),
    **dict.fromkeys(("repetition_penalty", "max_new_tokens", "eos_token_id"), READ),
    **dict.fromkeys(("min_new_tokens", "min_length", "no_repeat_ngram_size", "stop_strings"), READ),
    **dict.fromkeys(("suppress_tokens", "bad_words_ids", "sequence_bias", "begin_suppress_tokens"), READ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "watermarking_config"), READ),
    # Used by encoder-decoders, whose path reads the model's own generation config.
    **dict.fromkeys(("decoder_start_token_id", "bos_token_id"), READ),
    # Change which tokens `generate()` gives. Reported in the log and in `/info`.
    **dict.fromkeys(("max_length", "max_time"), IGNORED),
    **dict.fromkeys(("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping"), IGNORED),
    **dict.fromkeys(("top_h", "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty"), IGNORED),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "renormalize_logits", "remove_invalid_values"), IGNORED),
    **dict.fromkeys(("exponential_decay_length_penalty", "token_healing", "guidance_scale"), IGNORED),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "constraints", "force_words_ids"), IGNORED),
    **dict.fromkeys(("num_return_sequences",), IGNORED),
    # Change how `generate()` computes, or what it returns beside the tokens, but not the tokens.
    **dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "max_cache_len"), WITHOUT_EFFECT),
    **dict.fromkeys(("low_memory", "prefill_chunk_size", "compile_config", "disable_compile"), WITHOUT_EFFECT),
    **dict.fromkeys(("continuous_batching_config", "pad_token_id", "use_mtp"), WITHOUT_EFFECT),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), WITHOUT_EFFECT),
    **dict.fromkeys(("return_dict_in_generate", "transformers_version", "_from_model_config"), WITHOUT_EFFECT),
    **dict.fromkeys(("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"), WITHOUT_EFFECT),
    **dict.fromkeys(("assistant_confidence_threshold", "prompt_lookup_num_tokens"), WITHOUT_EFFECT),
    **dict.fromkeys(("max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"), WITHOUT_EFFECT),
    **dict.fromkeys(("target_lookbehind", "assistant_ensemble_weight", "speculation_type"), WITHOUT_EFFECT),
}
"""Treatment of each key of a generation config."""

_NEVER = -1e9
"""Added to the logits of forbidden tokens, so that their probability is 0 in float32."""


@dataclass(frozen=True)
class Watermark:
    """A watermark as the sampler makes it, see `SamplingParameters` of the contract."""

    share: float
    bias: float
    key: int


@dataclass(frozen=True)
class GenerationDefaults:
    """Default values for requests. None: the generation config does not set the value."""

    eos_token_ids: list[int]
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    no_repeat_ngram_size: int | None = None
    stop_strings: list[str] = field(default_factory=list)
    watermark: Watermark | None = None
    biases: dict[int, float] = field(default_factory=dict)
    """Values added to the logits of tokens, for every request."""
    runs: list[tuple[list[int], float]] = field(default_factory=list)
    """Several tokens in a row, with the value added to the logit of the last one, for every request."""
    begin_forbidden: list[int] = field(default_factory=list)
    """Tokens that begin no answer."""
    forced_bos: int | None = None
    forced_eos: list[int] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Unsupported keys that would change answers, each with its value."""

    def message(self) -> "pb.GenerationDefaults":
        """The defaults as the router receives them."""
        from gridwork_server._proto import shard_pb2 as pb

        return pb.GenerationDefaults(
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            min_length=self.min_length,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            stop_strings=self.stop_strings,
            watermark=pb.Watermark(**asdict(self.watermark)) if self.watermark else None,
            bias_tokens=list(self.biases),
            bias_values=list(self.biases.values()),
            run_tokens=[token for run, _ in self.runs for token in run],
            run_lengths=[len(run) for run, _ in self.runs],
            run_biases=[bias for _, bias in self.runs],
            begin_forbidden_token_ids=self.begin_forbidden,
            forced_bos_token_id=self.forced_bos,
            forced_eos_token_ids=self.forced_eos,
            ignored=self.ignored,
        )


def read(folder: Path, model_config: "PretrainedConfig", source: str = "auto") -> GenerationDefaults:
    """Reads the defaults. source: `auto` (the model's folder), `none`, or another folder with a generation_config.json.
    End-of-sequence tokens are always read. Raises ModelError for another folder without that file."""
    if source not in ("auto", "none"):
        folder = Path(source)
        if not (folder / "generation_config.json").is_file():
            raise ModelError(
                f"--generation-config is {source}, a folder without a generation_config.json; name one that has it, or "
                "use auto or none"
            )
    found = _load(folder, model_config)
    eos = _token_ids(found.eos_token_id)
    if not eos:
        eos = _token_ids(getattr(model_config.get_text_config(), "eos_token_id", None))
    if source == "none":
        return GenerationDefaults(eos)
    return _defaults(found, eos, bool(model_config.is_encoder_decoder))


def _load(folder: Path, model_config: "PretrainedConfig") -> "GenerationConfig":
    """Reads the generation config as a model's `from_pretrained` does."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the file is missing or damaged, or has values of wrong types
        if (path := folder / "generation_config.json").is_file():
            logger.warning(f"{path} is not used: {' '.join(str(error).split())[:300]}")
    try:
        found = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
    except Exception as error:  # as above
        logger.warning(f"the generation settings of config.json are not used: {' '.join(str(error).split())[:300]}")
        return GenerationConfig()
    # The architecture's config may give a key a meaning of its own, such as the number of experts of a token.
    own = inspect.signature(type(model_config).__init__).parameters
    special = {"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"}
    for key in KEYS:
        if key in own and key not in special:
            setattr(found, key, None)
    return found


def _token_ids(value: Any) -> list[int]:
    """Token ids from one number, a list of numbers, or nothing."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [int(id) for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0]


def _number(low: float, high: float, above_low: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and (low < value if above_low else low <= value) and value <= high

    return fits


# Same bounds as for requests.
_BOUNDS: dict[str, Callable[[Any], bool]] = {
    "temperature": _number(0, 1e6),
    "top_k": lambda value: isinstance(value, int) and 0 <= value < 2**32,
    "top_p": _number(0, 1, above_low=True),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1, above_low=True),
    "repetition_penalty": _number(1e-6, 1e6),
    "max_new_tokens": lambda value: isinstance(value, int) and 0 < value < 2**32,
    "min_new_tokens": lambda value: isinstance(value, int) and 0 <= value < 2**32,
    "min_length": lambda value: isinstance(value, int) and 0 <= value < 2**32,
    "no_repeat_ngram_size": lambda value: isinstance(value, int) and 0 <= value < 2**32,
}


def _defaults(found: "GenerationConfig", eos: list[int], has_encoder: bool) -> GenerationDefaults:
    neutral = type(found)._get_default_generation_params()
    ignored = []
    values: dict[str, Any] = {}
    for key, fits in _BOUNDS.items():
        value = getattr(found, key, None)
        if value is None:
            continue
        if fits(value):
            values[key] = value
        else:
            ignored.append(f"{key}: {value}, which is out of its range")
    if has_encoder and (shortest := values.pop("min_length", 0)):
        # A decoder's text has one token at its start that is no new one.
        values["min_new_tokens"] = max(values.get("min_new_tokens", 0), shortest - 1)
    watermark, unread = _watermark(getattr(found, "watermarking_config", None))
    ignored += unread
    biases, runs = _biases(found, eos)
    forced_bos = None if has_encoder else next(iter(_token_ids(found.forced_bos_token_id)), None)
    for key, fate in KEYS.items():
        value = getattr(found, key, None)
        if fate == IGNORED and value is not None and value != neutral.get(key) and value not in (False, [], {}):
            ignored.append(f"{key}: {value}")
    do_sample = found.do_sample if isinstance(found.do_sample, bool) else None
    if ignored:
        logger.warning(
            f"the model's generation config has settings that this version ignores: {', '.join(sorted(ignored))}"
        )
    return GenerationDefaults(
        eos,
        do_sample=do_sample,
        stop_strings=_texts(found.stop_strings),
        watermark=watermark,
        biases=biases,
        runs=runs,
        begin_forbidden=_token_ids(found.begin_suppress_tokens or []),
        forced_bos=forced_bos,
        forced_eos=_token_ids(found.forced_eos_token_id),
        ignored=sorted(ignored),
        **values,
    )


def _texts(value: Any) -> list[str]:
    """Texts from one text, a list of them, or nothing."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for text in values if isinstance(text, str) and text]


def _biases(found: "GenerationConfig", eos: list[int]) -> tuple[dict[int, float], list[tuple[list[int], float]]]:
    """Biases of single tokens, and those of several tokens in a row."""
    biases: dict[int, float] = {}
    runs: list[tuple[list[int], float]] = []
    entries = found.sequence_bias or []
    pairs = list(entries.items()) if isinstance(entries, dict) else [tuple(entry) for entry in entries]
    for tokens, bias in pairs:
        ids = _token_ids(list(tokens) if isinstance(tokens, (list, tuple)) else tokens)
        if len(ids) == 1:
            biases[ids[0]] = biases.get(ids[0], 0.0) + float(bias)
        elif ids:
            runs.append((ids, float(bias)))
    words = [_token_ids(word) for word in found.bad_words_ids or []]
    runs += [(word, -math.inf) for word in words if len(word) > 1]
    # Words that end a text are no bad words, as in `generate()`.
    never = [word[0] for word in words if len(word) == 1 and word[0] not in eos]
    never += _token_ids(found.suppress_tokens or [])
    return biases | dict.fromkeys(never, _NEVER), runs


def _watermark(found: Any) -> tuple[Watermark | None, list[str]]:
    """The watermark, and a description of one that is not supported."""
    if not found:
        return None, []
    settings = found if isinstance(found, dict) else found.to_dict()
    share, bias = settings.get("greenlist_ratio", 0.25), settings.get("bias", 2.0)
    key = settings.get("hashing_key", 15485863)
    fits = _number(0, 1)(share) and _number(-100, 100)(bias) and isinstance(key, int) and 0 <= key < 2**64
    if "ngram_len" in settings or settings.get("seeding_scheme", "lefthash") != "lefthash" or not fits:
        return None, [f"watermarking_config: {settings}"]
    return Watermark(float(share), float(bias), key), []
