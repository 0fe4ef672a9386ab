"""Tests each key of generation_config.json against the table."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, T5Config

from gridwork_server.errors import ModelError
from gridwork_server.model.generation_defaults import (
    IGNORED,
    KEYS,
    READ,
    WITHOUT_EFFECT,
    GenerationDefaults,
    Watermark,
    read,
)

SAMPLES: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.5,
    "repetition_penalty": 1.5,
    "max_new_tokens": 9,
    "eos_token_id": [4, 5],
    "suppress_tokens": [3],
    "bad_words_ids": [[3]],
    "sequence_bias": [[[3], 2.5]],
    "max_length": 9,
    "min_length": 9,
    "min_new_tokens": 9,
    "max_time": 1.0,
    "stop_strings": ["x"],
    "num_beams": 2,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "length_penalty": 0.5,
    "early_stopping": True,
    "top_h": 0.5,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "renormalize_logits": True,
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": [1, 1.5],
    "begin_suppress_tokens": [3],
    "token_healing": True,
    "guidance_scale": 1.5,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 3.0, "hashing_key": 7},
    "penalty_alpha": 0.5,
    "dola_layers": "low",
    "constraints": ["x"],
    "force_words_ids": [[1]],
    "num_return_sequences": 2,
}
NOTHING = GenerationDefaults(eos_token_ids=[2])


def defaults(folder: Path, content: dict[str, Any] | str, source: str = "auto") -> GenerationDefaults:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return read(folder, LlamaConfig(), source)


def test_every_key_of_transformers_is_listed() -> None:
    assert set(KEYS) == set(vars(GenerationConfig()))
    assert {key for key, fate in KEYS.items() if fate == IGNORED} <= set(SAMPLES)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_each_key_has_the_listed_effect(key: str, tmp_path: Path) -> None:
    fate = KEYS[key]
    of_the_models_path = ("decoder_start_token_id", "bos_token_id")
    renamed = {"begin_suppress_tokens": "begin_forbidden", "forced_bos_token_id": "forced_bos"}
    # Transformers refuses this key without sampling.
    more = {"do_sample": True} if key == "num_return_sequences" else {}
    found = defaults(tmp_path, {key: SAMPLES.get(key, 1)} | more)
    if fate == WITHOUT_EFFECT or key in of_the_models_path:
        assert found == NOTHING
    elif fate == IGNORED:
        assert [entry.split(":")[0] for entry in found.ignored] == [key]
        assert found == GenerationDefaults([2], ignored=found.ignored, **more)
    else:
        assert fate == READ
        assert not found.ignored
        if key in ("suppress_tokens", "bad_words_ids"):
            assert found.biases == {3: -1e9}
        elif key == "sequence_bias":
            assert found.biases == {3: 2.5}
        elif key == "eos_token_id":
            assert found.eos_token_ids == [4, 5]
        elif key == "forced_eos_token_id":
            assert found.forced_eos == [2]
        elif key == "watermarking_config":
            assert found.watermark == Watermark(share=0.5, bias=3.0, key=7)
        else:
            assert getattr(found, renamed.get(key, key)) == SAMPLES.get(key, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("top_p", float("nan")), ("min_p", 2.0), ("repetition_penalty", 0)],
)
def test_values_out_of_range_are_ignored(key: str, value: float, tmp_path: Path) -> None:
    found = defaults(tmp_path, json.dumps({key: value}))
    assert getattr(found, key) is None


def test_words_of_several_tokens_are_runs(tmp_path: Path) -> None:
    found = defaults(tmp_path, {"bad_words_ids": [[3], [4, 5]], "sequence_bias": [[[6, 7], 1.0]]})
    assert found.biases == {3: -1e9}
    assert found.runs == [([6, 7], 1.0), ([4, 5], -math.inf)]
    message = found.message()
    assert list(message.run_tokens) == [6, 7, 4, 5]
    assert (list(message.run_lengths), list(message.run_biases)) == ([2, 2], [1.0, -math.inf])
    assert not found.ignored


def test_the_end_is_no_bad_word(tmp_path: Path) -> None:
    found = defaults(tmp_path, {"bad_words_ids": [[2], [3]], "eos_token_id": 2})
    assert found.biases == {3: -1e9}


@pytest.mark.parametrize("more", [{"seeding_scheme": "selfhash"}, {"bias": 1000.0}, {"hashing_key": -1}])
def test_another_watermark_is_reported_as_ignored(more: dict[str, Any], tmp_path: Path) -> None:
    found = defaults(tmp_path, {"watermarking_config": {"bias": 2.0} | more})
    assert found.watermark is None
    assert [entry.split(":")[0] for entry in found.ignored] == ["watermarking_config"]


def test_the_shortest_length_of_a_decoder_counts_its_start(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"min_length": 9, "forced_bos_token_id": 3}')
    found = read(tmp_path, T5Config())
    assert (found.min_new_tokens, found.min_length, found.forced_bos) == (8, None, None)


def test_source_none_reads_only_end_tokens(tmp_path: Path) -> None:
    content = {"temperature": 0.5, "eos_token_id": 9, "num_beams": 3}
    assert defaults(tmp_path, content, "none") == GenerationDefaults([9])


def test_another_folder_must_have_a_generation_config(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelError, match=r"other, a folder without a generation_config\.json"):
        defaults(tmp_path, {"temperature": 0.5}, str(other))
    (other / "generation_config.json").write_text('{"temperature": 0.75}')
    assert defaults(tmp_path, {"temperature": 0.5}, str(other)).temperature == 0.75


def test_config_json_is_read_without_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "temperature": 0.5, "num_beams": 4, "eos_token_id": 8}'
    )
    found = read(tmp_path, LlamaConfig(), "auto")
    assert (found.temperature, found.eos_token_ids, found.ignored) == (0.5, [8], ["num_beams: 4"])


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    assert defaults(tmp_path, "{") == NOTHING
