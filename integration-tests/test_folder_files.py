"""Servers read a model's folder in the same way as Transformers and sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.models import EOS, VOCAB_SIZE, build, tokenizer_file
from support.server import Server
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
)

PROMPT = "The old railway line closed <think> in the sixties"
CACHE = "--huggingface-hub-cache"


def change(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with yarn over 64 positions, tokens in tokenizer_config.json alone, and defaults for requests."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("models") / "scaled"
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE + 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=7,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer_file(folder)
    added = {
        str(VOCAB_SIZE): {"content": "<think>", "special": False, "normalized": False},
        str(VOCAB_SIZE + 1): {"content": "<|user|>", "special": True, "normalized": False},
    }
    change(folder, "tokenizer_config.json", added_tokens_decoder=added, additional_special_tokens=["<|more|>"])
    path = folder / "generation_config.json"
    # In the form of Python's json.
    path.write_text('{"top_k": 1, "max_new_tokens": 9, "eos_token_id": [7], "suppress_tokens": [11], "num_beams": 3}')
    return folder


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@torch.inference_mode()
def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        suppress_tokens=[11],
        pad_token_id=0,
    )
    return [int(id) for id in out[0, len(ids) :]]


def test_a_generators_folder_is_read_like_transformers(scaled: Path, hub_cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(scaled)
    ids = tokenizer.encode(PROMPT)
    assert VOCAB_SIZE in ids
    flags = ("--dtype", "float32", "--max-total-tokens", "256", CACHE, hub_cache)
    with Server("--model-id", scaled, *flags) as server:
        info = server.client.get("/info").json()
        assert info["max_context_tokens"] == 256
        assert info["max_total_tokens"] == 256
        assert info["eos_token_ids"] == [7, tokenizer.convert_tokens_to_ids(EOS)]
        assert info["generation_defaults"] == {"top_k": 1, "max_new_tokens": 9}
        assert info["generation_config_ignored"] == ["num_beams: 3"]
        assert "num_beams" in server.log()

        texts = [PROMPT, "a <|user|> b <|more|>c", f"x{EOS}y", "<think>"]
        for text in texts:
            tokens = server.client.ok("/tokenize", {"inputs": text})
            assert [token["id"] for token in tokens] == tokenizer.encode(text)

        # With `top_k` 1 from the file, sampling takes the most likely token, up to `max_new_tokens` of them.
        body = {"model": "tgi", "prompt": PROMPT, "ignore_eos": True, "logprobs": 1}
        text = server.client.ok("/v1/completions", body)["choices"][0]["text"]
        assert text == tokenizer.decode(greedy(scaled, ids, 9), skip_special_tokens=True)
        # Beyond the first 64 positions of the config.
        answer = server.client.generate(PROMPT, max_new_tokens=100, ignore_eos=True)
        assert answer.token_ids == greedy(scaled, ids, 100)
        assert 11 not in answer.token_ids
        # The request's own value takes precedence.
        free = [
            server.client.ok("/v1/completions", body | {"top_k": 0, "seed": seed})["choices"][0]["text"]
            for seed in range(3)
        ]
        assert set(free) != {text}


def test_defaults_can_be_disabled_or_read_elsewhere(scaled: Path, hub_cache: Path, tmp_path: Path) -> None:
    with Server("--model-id", scaled, "--generation-config", "none", CACHE, hub_cache) as server:
        info = server.client.get("/info").json()
        assert info["generation_defaults"] == {} and info["generation_config_ignored"] == []
        assert info["eos_token_ids"][0] == 7
        # The result of an earlier start for the tokenizer is reused.
        assert "preparing" not in server.log()
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.25, "eos_token_id": 3}')
    with Server("--model-id", scaled, "--generation-config", tmp_path, CACHE, hub_cache) as server:
        info = server.client.get("/info").json()
        assert info["generation_defaults"] == {"temperature": 0.25}
        assert info["eos_token_ids"][0] == 3


def test_an_ordinary_folder_starts_without_being_prepared(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "llama")
    with Server("--model-id", folder, CACHE, tmp_path / "hub") as server:
        assert "preparing" not in server.log()
    assert not (tmp_path / "hub").exists()


# --- encoders -----------------------------------------------------------------------------------------------------

_BERT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("problem", "function"),
    [
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda logits: logits),
    ],
)
def test_label_scores_follow_the_problem_type(problem: Any, function: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = BertConfig(**_BERT, id2label={0: "a", 1: "b", 2: "c"}, problem_type=problem)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = tokenizer_file(tmp_path / "model")
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer.encode(PROMPT).ids])).logits[0]
    expected = dict(zip("abc", function(logits).tolist(), strict=True))
    with Server("--model-id", tmp_path / "model", "--dtype", "float32") as server:
        found = server.client.ok("/predict", {"inputs": PROMPT})
    for entry in found:
        assert entry["score"] == pytest.approx(expected[entry["label"]], abs=1e-4)


def test_an_embedder_is_read_like_sentence_transformers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    folder = tmp_path / "model"
    model = BertModel(BertConfig(**_BERT), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer = tokenizer_file(folder)
    kinds = ["Transformer", "Pooling", "LayerNorm"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    (folder / "2_LayerNorm").mkdir()
    (folder / "2_LayerNorm" / "config.json").write_text('{"dimension": 32}')
    norm = {"norm.weight": torch.randn(32), "norm.bias": torch.randn(32)}
    save_file(norm, folder / "2_LayerNorm" / "model.safetensors")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": true}')
    prompts = {"query": "Find: ", "plain": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))

    def expected(prompt: str, text: str) -> torch.Tensor:
        ids = tokenizer.encode((prompt + text).strip().lower()).ids
        skipped = len(tokenizer.encode(prompt.strip().lower()).ids) if prompt else 0
        with torch.inference_mode():
            hidden = model(torch.tensor([ids])).last_hidden_state[0, skipped:]
            return torch.nn.functional.layer_norm(hidden.mean(0), (32,), norm["norm.weight"], norm["norm.bias"])

    flags = ("--dtype", "float32", "--default-prompt-name", "query")
    with Server("--model-id", folder, *flags) as server:
        info = server.client.get("/info").json()
        assert info["max_input_tokens"] == 40 and info["normalizes"] is False
        text = "  A Kettle BOILS.\n"
        for name, prompt in (("query", "Find: "), ("plain", ""), (None, "Find: ")):
            (found,) = server.client.ok("/embed", {"inputs": text, "prompt_name": name, "normalize": False})
            torch.testing.assert_close(torch.tensor(found), expected(prompt, text), rtol=1e-3, atol=1e-3)
