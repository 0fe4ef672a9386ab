"""lm-eval gives the same over HTTP as with its own Transformers backend."""

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.client_programs import run
from support.paths import LONG, ROOT
from support.server import Server

ROWS = [
    ("The sun rises in the", ["east", "cellar", "banana"], 0),
    ("Water freezes and becomes", ["fire", "ice", "music"], 1),
    ("A dog has four", ["legs", "wheels", "Tuesdays"], 0),
    ("The opposite of hot is", ["purple", "loud", "cold"], 2),
    ("Fish live in the", ["oven", "water", "printer"], 1),
    ("Two and two make", ["four", "blue", "a chair"], 0),
]
TASKS = {
    "gridwork_choices": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "gridwork_rolling": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices[gold]}}."
metric_list: [{metric: word_perplexity}]
""",
    # More stop strings than OpenAI's API takes.
    "gridwork_until": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n", ".", "</s>", "<|im_end|>", "Question:", "Q:"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "gridwork_chat": """\
output_type: generate_until
doc_to_text: "Complete: {{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n", ","], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
#: Tasks without chats, and with them.
PLAIN = ("gridwork_choices", "gridwork_rolling", "gridwork_until")
CHAT = ("gridwork_chat",)

#: Takes too long for every change.
LONG_FORM = pytest.mark.skipif(not LONG, reason="the long form runs it")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    rows = [{"question": question, "choices": choices, "gold": gold} for question, choices, gold in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{task}")
    return folder


def evaluated(
    folder: Path, tasks: Path, names: tuple[str, ...], model: str, arguments: dict[str, Any], *flags: str
) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """Metrics and answers of each task. The backend `hf` finds PyTorch among the server's packages."""
    own: tuple[str | Path, ...] = (
        "python",
        ROOT / "integration-tests" / "clients" / "lm_eval_with.py",
        sysconfig.get_path("purelib"),
    )
    served: tuple[str | Path, ...] = ("lm_eval",)
    run(
        *(own if model == "hf" else served),
        *("--model", model, "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", ",".join(names), "--include_path", str(tasks), "--batch_size", "4"),
        *(("--device", "cpu") if model == "hf" else ()),
        *("--output_path", str(folder), "--log_samples", *flags),
    )
    (results,) = folder.rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    found = {}
    for name in names:
        (samples,) = folder.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        answers = [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
        assert len(answers) == len(ROWS)
        found[name] = (metrics[name], answers)
    return found


def numbers(value: Any, among: Callable[[float], Any]) -> Any:
    """Answers with numbers for the texts that the samples have, each as `among` makes it."""
    if isinstance(value, list):
        return [numbers(one, among) for one in value]
    try:
        return among(float(value))
    except ValueError:
        return value


def roughly(value: float) -> Any:
    return pytest.approx(value, abs=2e-3)


def compare(
    found: dict[str, tuple[dict[str, Any], list[Any]]], own: dict[str, tuple[dict[str, Any], list[Any]]]
) -> None:
    for name, (metrics, answers) in own.items():
        for metric, value in metrics.items():
            if metric.endswith(",none") and isinstance(value, float):
                assert found[name][0][metric] == pytest.approx(value, rel=1e-3), (name, metric)
        assert numbers(found[name][1], float) == numbers(answers, roughly), name


def of_transformers(smollm2: Path) -> dict[str, Any]:
    return {"pretrained": smollm2, "dtype": "float32"}


def of_server(url: str, smollm2: Path) -> dict[str, Any]:
    return {
        "model": "any-name",
        "base_url": url,
        "tokenizer_backend": "huggingface",
        "tokenizer": smollm2,
        "num_concurrent": 2,
    }


@LONG_FORM
def test_local_completions_equal_the_transformers_backend(
    smollm2_server: Server, smollm2: Path, tasks: Path, tmp_path: Path
) -> None:
    own = evaluated(tmp_path / "own", tasks, PLAIN, "hf", of_transformers(smollm2))
    served = of_server(f"{smollm2_server.url}/v1/completions", smollm2)
    found = evaluated(tmp_path / "served", tasks, PLAIN, "local-completions", served)
    compare(found, own)
    assert own["gridwork_choices"][0]["acc,none"] > 0.5


@LONG_FORM
def test_local_chat_completions_equal_the_transformers_backend(
    smollm2_server: Server, smollm2: Path, tasks: Path, tmp_path: Path
) -> None:
    own = evaluated(tmp_path / "own", tasks, CHAT, "hf", of_transformers(smollm2), "--apply_chat_template")
    served = of_server(f"{smollm2_server.url}/v1/chat/completions", smollm2)
    found = evaluated(tmp_path / "served", tasks, CHAT, "local-chat-completions", served, "--apply_chat_template")
    compare(found, own)
    assert all(answer[0] for _, answers in own.values() for answer in answers)
