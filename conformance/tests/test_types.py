"""One model type of every kind, served and compared with `generate()`. `make conformance` covers all types."""

from pathlib import Path

import pytest

from conformance.generation import CAUSAL, SEQ2SEQ, check
from conformance.scaled_rope import scaled

#: The path of each type, and the kind that it stands for.
CAUSAL_TYPES = {
    "llama": ("paged", "grouped-query attention and rotary positions"),
    "gpt2": ("paged", "learned positions and fused projections"),
    "gemma2": ("paged", "soft-capped scores, sliding and full layers"),
    "gemma3n_text": ("paged", "keys and values shared between layers"),
    "gemma4": ("paged", "a config with parts, heads that differ between layers"),
    "gpt_oss": ("paged", "attention sinks and a mixture of experts"),
    "llama4_text": ("paged", "layers that attend within chunks"),
    "deepseek_v3": ("paged", "latent attention: keys wider than values"),
    "diffllama": ("paged", "layers that attend twice"),
    "mixtral": ("paged", "a mixture of experts"),
    "opt": ("paged", "positions made from the mask"),
    "deepseek_v32": ("batched", "sparse attention with an index that selects keys"),
    "deepseek_v4": ("batched", "a cache whose layout changes with its length"),
    "doge": ("batched", "a mask of its own"),
    "bloom": ("batched", "ALiBi"),
    "gptj": ("batched", "an older family"),
    "gpt_neo": ("batched", "local attention"),
    "bart": ("batched", "positions that do not skip padding"),
    "rwkv": ("batched", "recurrent state alone"),
    "mamba": ("paged", "state-space layers alone"),
    "recurrent_gemma": ("batched", "state inside the modules"),
    "jamba": ("paged", "state-space layers beside attention"),
    "nemotron_h": ("paged", "Mamba-2 and experts beside attention"),
    "qwen3_next": ("paged", "gated delta nets beside attention"),
    "bailing_hybrid": ("paged", "delta attention beside latent attention"),
    "lfm2_moe": ("paged", "short convolutions beside attention"),
    "stablelm": ("paged", "layers that do not pass keyword arguments on"),
    "git": ("batched", "a table of its own of attention classes"),
    "openai-gpt": ("solo", "no cache at all"),
    "xlnet": ("solo", "inputs that only its own prepare_inputs_for_generation() makes"),
}

#: The path of each type, and kind of rotary frequencies that depend on the length.
SCALED_TYPES = {
    ("phi3", "longrope"): "paged",
    ("phimoe", "longrope"): "paged",
    ("gemma3_text", "longrope"): "paged",
    ("deepseek_v3", "longrope"): "paged",
    ("gpt_neox", "dynamic"): "paged",
    ("gpt_oss", "dynamic"): "paged",
    ("falcon", "dynamic"): "batched",
    ("qwen3_next", "longrope"): "paged",
    ("qwen4_exp_text", "longrope"): "batched",
}

SEQ2SEQ_TYPES = {
    "t5": ("batched", "relative positions"),
    "bart": ("batched", "learned positions"),
    "nllb-moe": ("batched", "an encoder with experts"),
    "prophetnet": ("solo", "a decoder that predicts several tokens"),
}


@pytest.mark.parametrize(("model_type", "path"), [(name, path) for name, (path, _kind) in CAUSAL_TYPES.items()])
def test_a_causal_type_gives_the_tokens_of_generate(model_type: str, path: str, tmp_path: Path) -> None:
    verdict = check(model_type, tmp_path, CAUSAL)
    assert verdict.exact, verdict
    assert verdict.path == path, verdict.reason
    assert bool(verdict.reason) == (path != "paged")


@pytest.mark.parametrize(("model_type", "path"), [(name, path) for name, (path, _kind) in SEQ2SEQ_TYPES.items()])
def test_an_encoder_decoder_gives_the_tokens_of_generate(model_type: str, path: str, tmp_path: Path) -> None:
    verdict = check(model_type, tmp_path, SEQ2SEQ)
    assert verdict.exact, verdict
    assert verdict.path == path, verdict.reason


@pytest.mark.parametrize(("model_type", "kind"), SCALED_TYPES)
def test_length_dependent_frequencies_are_per_sequence(model_type: str, kind: str, tmp_path: Path) -> None:
    verdict = check(model_type, tmp_path, CAUSAL, change=lambda config: scaled(config, kind))
    assert verdict.exact, verdict
    assert verdict.path == SCALED_TYPES[model_type, kind], verdict.reason


@pytest.mark.parametrize("path", ["batched", "solo"])
def test_a_slower_path_gives_the_same_tokens(path: str, tmp_path: Path) -> None:
    verdict = check("llama", tmp_path, CAUSAL, model_impl=path)
    assert verdict.exact, verdict
    assert (verdict.path, verdict.reason) == (path, "")
