"""Serves one tiny random model on a shard and compares its greedy tokens with those of `generate()`."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.parallel.group import RankGroup
from tests.driver import Driver
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel

from .shrink import VOCAB_SIZE, randomise, tiny_config

PROMPT_LENGTHS = (23, 1, 12, 30, 5, 17, 2, 9)
NUM_NEW_TOKENS = 10
LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=64)


@dataclass
class Verdict:
    """Result of one model type."""

    model_type: str
    path: str = ""
    reason: str = ""
    """Reason why no faster path is chosen."""
    exact: bool = False
    error: str = ""
    """Reason why the type is not served, or not exact."""
    reference_error: str = ""
    """Reason why Transformers itself generates no tokens."""
    path_in_16_bits: str = ""
    """The path in bfloat16; empty when the type is not served in it."""
    reason_in_16_bits: str = ""
    """Reason why the path differs from that of float32."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def prompts(seed: int = 0) -> list[list[int]]:
    """Prompts of different lengths, without tokens that configs use as special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB_SIZE - 10, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


SEQ2SEQ, CAUSAL = AutoModelForSeq2SeqLM, AutoModelForCausalLM


Change = Callable[[PretrainedConfig], PretrainedConfig]


def build(model_type: str, folder: Path, kind: Any, change: Change = lambda same: same) -> type[PreTrainedModel]:
    """Saves a tiny random model of the type and returns its class. kind: CAUSAL or SEQ2SEQ; change: edits its
    config."""
    config = change(tiny_config(model_type))
    config.forced_eos_token_id = None
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    if kind is SEQ2SEQ and hasattr(getattr(config, "encoder", None), "is_decoder"):
        config.encoder.is_decoder, config.decoder.add_cross_attention = False, True
    torch.manual_seed(0)
    model = kind.from_config(config)
    randomise(model)
    model.save_pretrained(folder)
    return type(model)


def reference_tokens(folder: Path, model_class: Any, is_stateful: bool = False) -> list[list[int]]:
    """Tokens of `generate()` for every prompt alone. is_stateful: whether modules keep state between prompts."""
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    # A copy for each prompt: modules with state would carry it from one prompt into the next.
    fresh = copy.deepcopy if is_stateful or getattr(model, "_is_stateful", False) else lambda same: same
    return [greedy(fresh(model), prompt, NUM_NEW_TOKENS) for prompt in prompts()]


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Exactly `count` greedy tokens of `generate()`; no token ends them."""
    out: Any = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        num_beams=1,
        forced_eos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, -count:].tolist()


def shard_config(folder: Path, **settings: Any) -> ShardConfig:
    """A config in float32 with a small cache, and these settings."""
    given: dict[str, Any] = {"model_path": folder, "socket": "", "dtype": "float32", "kv_cache_memory_bytes": 2**24}
    return ShardConfig(**(given | settings))


def served_tokens(folder: Path, verdict: Verdict, **settings: Any) -> list[list[int]]:
    """Tokens of the shard for all prompts at once; a prompt joins with each step."""
    from gridwork_server.model.loading import load
    from gridwork_server.step.runner import Runner

    config = shard_config(folder, **settings)
    group = RankGroup()
    runner = Runner(load(config, group), config, group)
    size = runner.warm_up(LIMITS)
    verdict.path, verdict.reason = runner.path.name, runner.loaded.path_reason
    recompute_at = runner.loaded.lengths.recompute_at if runner.loaded.lengths else 0
    driver = Driver(runner.run, size.num_blocks, chunk=16, recompute_at=recompute_at)
    names = []
    for prompt in prompts():
        names.append(driver.add(prompt, NUM_NEW_TOKENS))
        driver.step()
    results = driver.finish()
    for failure in driver.failures.values():
        raise RuntimeError(failure.message)
    return [results[name] for name in names]


def find_path_in_16_bits(folder: Path, model_class: Any, verdict: Verdict, **settings: Any) -> None:
    """Fills in the path that is chosen in bfloat16. Never raises."""
    from gridwork_server.model.loading import load

    try:
        loaded = load(shard_config(folder, **(settings | {"dtype": "bfloat16"})), RankGroup())
    except Exception as error:
        verdict.reason_in_16_bits = f"in bfloat16: {own_error_in_16_bits(folder, model_class) or first_line(error)}"
        return
    verdict.path_in_16_bits = loaded.path.name
    if verdict.path_in_16_bits != verdict.path:
        verdict.reason_in_16_bits = f"in bfloat16: {loaded.path_reason}"


def own_error_in_16_bits(folder: Path, model_class: Any) -> str:
    """The error of Transformers itself in bfloat16; empty when there is none."""
    model = model_class.from_pretrained(folder, dtype=torch.bfloat16).eval()
    try:
        greedy(model, prompts()[0], 1)
    except Exception as error:
        return f"Transformers itself makes no text with it ({first_line(error)})"
    try:
        with torch.inference_mode():
            model(torch.tensor(prompts()[:1]), use_cache=False)
    except Exception as error:
        return f"Transformers' own forward() fails ({first_line(error)})"
    return ""


def check(model_type: str, folder: Path, kind: Any = CAUSAL, change: Change | None = None, **settings: Any) -> Verdict:
    """Builds and serves a type, and compares its tokens. change: edits the config. Never raises."""
    verdict = Verdict(model_type)
    started = time.monotonic()
    try:
        built = build(model_type, folder, kind, change or (lambda same: same))
        expected = reference_tokens(folder, built, is_stateful=change is not None)
    except Exception as error:
        verdict.reference_error = first_line(error)
        return verdict
    try:
        given = served_tokens(folder, verdict, **settings)
    except Exception as error:
        verdict.error = first_line(error)
        verdict.seconds = time.monotonic() - started
        return verdict
    verdict.exact = given == expected
    for prompt, want, got in zip(prompts(), expected, given, strict=True):
        if want != got:
            same = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), len(want))
            verdict.wrong.append(f"prompt of {len(prompt)}: differs from token {same} on")
    verdict.error = "; ".join(verdict.wrong)
    find_path_in_16_bits(folder, built, verdict, **settings)
    verdict.seconds = time.monotonic() - started
    return verdict


def first_line(error: Exception) -> str:
    """The error in one line of up to 300 characters, for a table."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + " …"
