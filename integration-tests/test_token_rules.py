"""Rules about which tokens may come, such as forbidden words and watermarks, against Transformers' `generate()`."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.server import Server, wait_for
from support.text import CORPUS
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    WatermarkDetector,
    WatermarkingConfig,
)

TinyModels = Callable[[str], Path]

PROMPTS = [line for line in CORPUS.splitlines() if line][:4]
NUM_TOKENS = 40
KEY = 15485863


class Reference:
    """Transformers' own `generate()` of a folder, greedy and in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def continued(self, ids: list[int], config: GenerationConfig | None = None, **settings: Any) -> list[int]:
        """Tokens after the prompt. config: the model's own settings; None: those of `settings` alone."""
        neutral: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": NUM_TOKENS}
        made = config or GenerationConfig(eos_token_id=0, **neutral | settings)
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=made)
        return output[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def reference(tiny: TinyModels) -> Reference:
    return Reference(tiny("llama"))


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "drafts"])
def server(request: pytest.FixtureRequest, tiny: TinyModels) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--speculate", request.param, "--block-size", 16)
    with Server("--model-id", tiny("llama"), *flags) as running:
        yield running


def configured(server: Server, prompt: str, config: dict[str, Any]) -> tuple[str, int]:
    """Text of a chat with settings of `generate()`, and its number of tokens."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "generation_config": {"max_new_tokens": NUM_TOKENS} | config,
        "skip_special_tokens": False,
    }
    reply = server.client.ok("/v1/chat/completions", body)
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


def test_words_that_are_forbidden_do_not_come(server: Server, reference: Reference) -> None:
    changed = 0
    for prompt in PROMPTS:
        ids = reference.ids(prompt)
        free = reference.continued(ids)
        # Parts of the answer, the first with a space before it.
        words = [reference.tokenizer.decode(free[start : start + 2]) for start in (3, 8)]
        words = [word for word in words if word.strip()]
        spelled = [reference.ids(text) for word in words for text in (word.lstrip(), " " + word.lstrip())]
        expected = reference.continued(ids, bad_words_ids=spelled)
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "bad_words": words}
        text = server.client.ok("/v1/completions", body)["choices"][0]["text"]
        assert text == reference.tokenizer.decode(expected, skip_special_tokens=True)
        changed += expected != free
    assert changed, "no word ever mattered"


SETTINGS = (
    *("bad_words_ids", "no_repeat_ngram_size", "suppress_tokens", "watermarking_config"),
    *("sequence_bias", "begin_suppress_tokens"),
)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_generate_in_a_request_give_its_tokens(server: Server, reference: Reference, name: str) -> None:
    changed = 0
    for prompt in PROMPTS:
        chat = reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = reference.ids(chat)
        free = reference.continued(ids)
        values: dict[str, Any] = {
            "bad_words_ids": [free[2:4], [free[6]], [10, 11, 12]],
            "no_repeat_ngram_size": 2,
            "suppress_tokens": [free[1], free[4]],
            "watermarking_config": {"greenlist_ratio": 0.4, "bias": 3.0, "hashing_key": 77},
            "sequence_bias": [[free[2:4], -50.0], [free[5:6], -3.0], [[free[1], 7], 60.0]],
            "begin_suppress_tokens": [free[0], 5],
        }
        settings = {name: values[name]}
        expected = reference.continued(ids, **settings)
        text, _ = configured(server, prompt, settings)
        assert text == reference.tokenizer.decode(expected).removesuffix("<|end|>"), (name, prompt)
        changed += expected != free
    assert changed, "the setting never mattered"


def test_forbidden_words_hold_among_others_and_after_a_preemption(tiny: TinyModels, reference: Reference) -> None:
    """The cache holds some of the sequences, so that others are preempted and computed again."""
    prompts = [prompt[:60] for prompt in PROMPTS]
    rules: list[dict[str, Any]] = [{"bad_words_ids": [[300, 301], [302]]}, {"no_repeat_ngram_size": 2}, {}]
    asked = [(prompt, rule) for prompt in prompts for rule in rules]
    flags = ("--dtype", "float32", "--kv-cache-memory", 400_000, "--max-total-tokens", 200)
    with Server("--model-id", tiny("llama"), *flags) as running:
        answers = running.client.together([partial(configured, running, *one) for one in asked])
        preempted = running.client.metric("gridwork_preemptions_total")
    for (prompt, rule), (text, _) in zip(asked, answers, strict=True):
        chat = reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        expected = reference.continued(reference.ids(chat), **rule)
        assert text == reference.tokenizer.decode(expected).removesuffix("<|end|>"), (prompt, rule)
    assert preempted > 0


def test_a_watermark_is_found_by_transformers_and_only_where_it_is(server: Server, reference: Reference) -> None:
    settings = WatermarkingConfig(greenlist_ratio=0.5, bias=2.0, hashing_key=KEY)
    config = copy.deepcopy(reference.model.config)
    # The detector compares the first token with it.
    config.bos_token_id = -1
    detector: Any = WatermarkDetector(config, "cpu", settings)

    def score(**more: Any) -> float:
        answer = server.client.generate(PROMPTS[0], max_new_tokens=300, do_sample=True, seed=3, ignore_eos=True, **more)
        found = detector(torch.tensor([answer.token_ids]), return_dict=True)
        return float(found.z_score[0])

    assert score(watermark=True) > 5
    assert score(watermark=False) < 3
    # A server's restart and the other sequences do not matter: the text is the same.
    again = [
        partial(server.client.generate, PROMPTS[0], max_new_tokens=60, do_sample=True, seed=5, watermark=True)
        for _ in range(3)
    ]
    assert len({tuple(answer.token_ids) for answer in server.client.together(again)}) == 1


def test_the_flags_of_the_watermark_are_those_of_tgi(tiny: TinyModels, reference: Reference) -> None:
    flags = ("--watermark-gamma", "0.25", "--watermark-delta", "6")
    with Server("--model-id", tiny("llama"), "--dtype", "float32", *flags) as running:
        answer = running.client.generate(PROMPTS[1], max_new_tokens=NUM_TOKENS, watermark=True)
    expected = reference.continued(
        reference.ids(PROMPTS[1]),
        watermarking_config=WatermarkingConfig(greenlist_ratio=0.25, bias=6.0, hashing_key=KEY),
    )
    assert answer.token_ids == expected
    assert answer.token_ids != reference.continued(reference.ids(PROMPTS[1]))


@pytest.fixture(scope="module")
def configured_folder(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a generation config that has rules."""
    folder = tmp_path_factory.mktemp("configured") / "tiny-llama"
    shutil.copytree(tiny("llama"), folder)
    config = {
        "do_sample": False,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "max_new_tokens": 24,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[300, 301], [302]],
        "sequence_bias": [[[303], 2.0], [[304, 305], -5.0]],
        "suppress_tokens": [310, 311, 312],
        "begin_suppress_tokens": [313, 314],
        "min_new_tokens": 20,
        "forced_eos_token_id": 0,
    }
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def test_rules_of_the_generation_config_apply_to_requests_that_leave_them_out(configured_folder: Path) -> None:
    reference = Reference(configured_folder)
    own = reference.model.generation_config
    with Server("--model-id", configured_folder, "--dtype", "float32") as running:
        info = running.client.get("/info").json()
        assert info["generation_config_ignored"] == []
        defaults = info["generation_defaults"]
        assert (defaults["no_repeat_ngram_size"], defaults["min_new_tokens"]) == (3, 20)
        assert info["token_rules"] == {
            "biased_tokens": 5,
            "biased_runs": 2,
            "begin_suppress_tokens": [313, 314],
            "forced_bos_token_id": None,
            "forced_eos_token_ids": [0],
        }
        for prompt in PROMPTS:
            chat = reference.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            ids = reference.ids(chat)
            expected = reference.continued(ids, config=own)
            body = {"messages": [{"role": "user", "content": prompt}]}
            reply = running.client.ok("/v1/chat/completions", body)
            text = reply["choices"][0]["message"]["content"]
            assert text == reference.tokenizer.decode(expected, skip_special_tokens=True), prompt
            assert reply["usage"]["completion_tokens"] == len(expected)
            # A shorter limit lowers the minimum rather than being refused.
            short = running.client.ok("/v1/chat/completions", body | {"max_tokens": 3})
            assert short["usage"]["completion_tokens"] == 3
            # The rules about tokens hold on TGI's routes, the other defaults do not.
            tokens = running.client.generate(prompt, max_new_tokens=6).token_ids
            assert tokens[-1] == 0 and tokens[0] not in (313, 314)
            assert not {302, 310, 311, 312} & set(tokens)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["a"] * 1025}, "bad_words"),
        ({"bad_words": "a"}, "bad_words"),
        ({"bad_words": ["x" * 257]}, "bad_words"),
        ({"generation_config": {"bad_words_ids": [[]]}}, "bad_words_ids"),
        ({"generation_config": {"bad_words_ids": [[99999]]}}, "bad_words_ids"),
        ({"generation_config": {"suppress_tokens": [99999]}}, "suppress_tokens"),
        ({"generation_config": {"watermarking_config": {"seeding_scheme": "selfhash"}}}, "watermarking_config"),
        ({"generation_config": {"watermarking_config": {"greenlist_ratio": 3}}}, "greenlist_ratio"),
        ({"generation_config": {"watermarking_config": {"ngram_len": 5}}}, "watermarking_config"),
    ],
)
def test_wrong_rules_are_refused_by_name(tiny_server: Server, body: dict[str, Any], field: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    response = tiny_server.client.post("/v1/chat/completions", chat | body)
    assert response.status_code in (400, 422), response.text
    assert field in response.text
    wait_for(lambda: tiny_server.client.metric("gridwork_running_sequences") == 0, 20, "nothing runs")
