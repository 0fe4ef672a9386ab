"""Client libraries and programs work with a changed base URL alone."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import encoders
from support.client_programs import run, script
from support.paths import LONG, VLLM
from support.server import Server
from transformers import AutoModelForCausalLM, AutoTokenizer

PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def masked(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("--model-id", encoders.masked(tmp_path_factory.mktemp("masked") / "tiny", minilm)) as running:
        yield running


# --- huggingface_hub ----------------------------------------------------------------------------------------------


def test_huggingface_hub_chats_unmodified(smollm2_server: Server) -> None:
    found = script("hub", smollm2_server.url, "chats")
    assert found.pop("TGI") == "The capital of France is Paris.\n"
    assert found.pop("with tools")
    assert len(found) == 5
    assert set(found.values()) == {PARIS}, found


def test_huggingface_hub_embeds_at_the_root(minilm_server: Server) -> None:
    found = script("hub", minilm_server.url, "embeddings")
    (vector,) = minilm_server.client.ok("/embed", {"inputs": "A cat sits on the mat."})
    assert found["shape"] == found["cut"] == [1, 384]
    assert found["first"] == pytest.approx(vector[:3])


def test_huggingface_hub_fills_masks_at_the_root(masked: Server) -> None:
    found = script("hub", masked.url, "masks")
    expected = masked.client.ok("/predict", {"inputs": "The [MASK] sits.", "top_k": 2})
    assert [one["token_str"] for one in found] == [one["label"] for one in expected]
    assert [one["sequence"] for one in found] == [f"The {one['label']} sits." for one in expected]


def test_huggingface_hub_classifies_at_the_root(reranker_server: Server) -> None:
    # A reranker gives a single label.
    assert [one["label"] for one in script("hub", reranker_server.url, "labels")] == ["relevance"]


# --- LangChain and LiteLLM ----------------------------------------------------------------------------------------


def test_langchain_works_with_its_defaults(smollm2_server: Server, minilm_server: Server) -> None:
    found = script("langchain", smollm2_server.url, minilm_server.url)
    assert found["chat"] == found["streamed"] == PARIS
    assert found["with tools"]
    assert found["top_logprobs"] == [20, 20]
    assert "OpenAIContextOverflowError" in found["too long"]
    assert len(found["batch"]) == 12
    assert found["stops"] == " 3,"
    assert found["embeddings"] == [384] * 61


def test_litellm_reads_answers_and_errors(
    smollm2_server: Server, minilm_server: Server, reranker_server: Server
) -> None:
    found = script("lite", smollm2_server.url, minilm_server.url, reranker_server.url)
    for model in ("openai/gpt-4o", "hosted_vllm/any/name"):
        assert found[model] == found[f"{model}, streamed"] == PARIS
    assert found["too long: prompt"] == found["too long: answer"] == "ContextWindowExceededError"
    assert found["embeddings"] == [384] * 40
    texts = ["In the sky.", "On the mat.", "Nowhere."]
    ranks = reranker_server.client.ok("/rerank", {"query": "Where is the cat?", "texts": texts})
    assert found["ranked"] == [[rank["index"], pytest.approx(rank["score"])] for rank in ranks[:2]]


# --- lm-eval ------------------------------------------------------------------------------------------------------

CHOICES = [
    ("The sun rises in the", ["east", "cellar", "banana"], 0),
    ("Water freezes and becomes", ["fire", "ice", "music"], 1),
    ("A dog has four", ["legs", "wheels", "Tuesdays"], 0),
    ("The opposite of hot is", ["purple", "loud", "cold"], 2),
    ("Fish live in the", ["oven", "water", "printer"], 1),
    ("Two and two make", ["four", "blue", "a chair"], 0),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": question, "choices": choices, "gold": gold} for question, choices, gold in CHOICES]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (folder / "choices.yaml").write_text(
        f"task: gridwork_choices\n{common}output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (folder / "until.yaml").write_text(
        f"task: gridwork_until\n{common}output_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{choices[gold]}}"\n'
        "generation_kwargs:\n  until: ['\\n', '.', '</s>', '<|im_end|>', 'Question:', 'Q:']\n  max_gen_toks: 4\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return folder


@torch.inference_mode()
def _choices_by_transformers(folder: Path) -> tuple[float, float]:
    """`acc` and `acc_norm` of CHOICES by plain Transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    right, right_norm = 0, 0
    for question, choices, gold in CHOICES:
        scores = []
        for choice in choices:
            ids = tokenizer(f"{question} {choice}", return_tensors="pt").input_ids
            begin = len(tokenizer(question).input_ids)
            logprobs = model(ids).logits[0].log_softmax(-1)[begin - 1 : -1]
            scores.append(float(logprobs.gather(1, ids[0, begin:, None]).sum()))
        norms = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        right += scores.index(max(scores)) == gold
        right_norm += norms.index(max(norms)) == gold
    return right / len(CHOICES), right_norm / len(CHOICES)


def test_lm_eval_scores_as_transformers_does(
    smollm2_server: Server, smollm2: Path, tasks: Path, tmp_path: Path
) -> None:
    arguments = {
        "model": "any-name",
        "base_url": f"{smollm2_server.url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": smollm2,
        "num_concurrent": 2,
    }
    run(
        "lm_eval",
        *("--model", "local-completions", "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())),
        *("--tasks", "gridwork_choices,gridwork_until", "--include_path", tasks, "--batch_size", "8"),
        *("--output_path", tmp_path / "results", "--log_samples"),
    )
    (found,) = (tmp_path / "results").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    acc, acc_norm = _choices_by_transformers(smollm2)
    assert results["gridwork_choices"]["acc,none"] == pytest.approx(acc)
    assert results["gridwork_choices"]["acc_norm,none"] == pytest.approx(acc_norm)
    assert not math.isnan(results["gridwork_until"]["exact_match,none"])
    (samples,) = (tmp_path / "results").rglob("samples_gridwork_choices_*.jsonl")
    for line in samples.read_text().splitlines():
        for logprob, is_greedy in json.loads(line)["filtered_resps"]:
            assert math.isfinite(float(logprob)) and str(is_greedy) in ("True", "False")


# --- transformers chat --------------------------------------------------------------------------------------------


def test_transformers_chat_works(smollm2_server: Server) -> None:
    output = run(
        "transformers",
        *("chat", "any-name", f"{smollm2_server.url}/v1", "max_new_tokens=20", "do_sample=False"),
        input="What is the capital of France?\n!exit\n",
    )
    assert PARIS in " ".join(output.split())


# --- vllm bench serve ---------------------------------------------------------------------------------------------


def bench(url: str, backend: str, endpoint: str, tmp_path: Path, *flags: str | Path) -> dict[str, float]:
    run(
        "vllm",
        *("bench", "serve", "--backend", backend, "--base-url", url, "--endpoint", endpoint),
        *("--num-prompts", "4", "--save-result", "--result-dir", tmp_path, "--result-filename", f"{backend}.json"),
        *flags,
        environment=VLLM,
    )
    result: dict[str, float] = json.loads((tmp_path / f"{backend}.json").read_text())
    return result


@pytest.mark.skipif(not LONG, reason="vLLM takes 6 GB; `make nightly` installs it")
def test_vllm_bench_serve_measures(
    smollm2_server: Server, minilm_server: Server, reranker_server: Server, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    random = ("--dataset-name", "random", "--random-input-len", "16")
    # Without --model it requests the served model's name, and loads its tokenizer.
    for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
        found = bench(smollm2_server.url, backend, endpoint, tmp_path, *random, "--random-output-len", "4")
        assert found["completed"] == 4, backend
        assert 4 <= found["total_output_tokens"] <= 16, backend
    found = bench(minilm_server.url, "openai-embeddings", "/v1/embeddings", tmp_path, *random)
    assert found["completed"] == 4
    ranking = ("--dataset-name", "random-rerank", "--random-input-len", "40", "--random-batch-size", "2")
    # Each request has two documents.
    assert bench(reranker_server.url, "vllm-rerank", "/v1/rerank", tmp_path, *ranking)["completed"] == 2
