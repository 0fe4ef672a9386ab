"""Models with Python code of their own: they answer as their own forward() says, and without trust nothing of them
runs."""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import custom_models
from support.server import Server
from support.text import CORPUS

sys.path.append(str(Path(__file__).resolve().parents[1] / "server"))
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.runner import Runner
from tests.driver import Driver

PROMPTS = [[5, 17, 200, 31, 8, 444, 3, 90], [77], [12, 13, 14, 15, 600], list(range(100, 121))]
COUNT = 12
LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a habit's model."""
    root = tmp_path_factory.mktemp("custom")
    return functools.cache(lambda habit: custom_models.build(habit, root / habit))


@pytest.fixture(scope="module")
def expected(folders: Callable[[str], Path]) -> Callable[[str], list[list[int]]]:
    """Gives a habit's greedy answers to PROMPTS by plain forward()."""

    @functools.cache
    def answers(habit: str) -> list[list[int]]:
        model = custom_models.plain(folders(habit))
        return [custom_models.greedy(model, prompt, COUNT) for prompt in PROMPTS]

    return answers


def loaded(folder: Path, **settings: Any) -> Runner:
    """The shard's own runner, in float32."""
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 2**24, "trust_remote_code": True}
    config = ShardConfig(model_path=folder, socket="", **options | settings)
    group = RankGroup()
    return Runner(load(config, group), config, group)


#: What the habits allow. The others must not end on the paged path.
PAGED = ("contract", "python_tokenizer")


@pytest.mark.parametrize("habit", custom_models.HABITS)
def test_prompts_answered_together_give_the_tokens_of_the_models_own_forward(
    habit: str, folders: Callable[[str], Path], expected: Callable[[str], list[list[int]]]
) -> None:
    runner = loaded(folders(habit))
    assert (runner.loaded.path.name == "paged") == (habit in PAGED), runner.loaded.path_reason
    assert bool(runner.loaded.path_reason) == (habit not in PAGED)
    driver = Driver(runner.run, runner.warm_up(LIMITS).num_blocks, chunk=6)
    names = []
    for prompt in PROMPTS:
        names.append(driver.add(prompt, COUNT))
        driver.step()  # so that sequences join others that run
    results = driver.finish()
    assert [results[name] for name in names] == expected(habit)


def test_what_drops_the_keywords_is_noticed(folders: Callable[[str], Path]) -> None:
    reason = loaded(folders("drops_kwargs")).loaded.path_reason
    assert "not paged" in reason
    assert "keyword" in reason
    with pytest.raises(ModelError, match="keyword"):
        loaded(folders("drops_kwargs"), model_impl="paged")


@pytest.mark.parametrize("habit", [name for name, habit in custom_models.HABITS.items() if habit.config_class])
def test_without_trust_a_shard_refuses_and_names_the_file(
    habit: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = marked(folders(habit), tmp_path)
    with pytest.raises(ModelError, match=r"config\.json needs its own Python code.*--trust-remote-code"):
        loaded(folder, trust_remote_code=False)
    assert not (tmp_path / "has-run").exists()
    loaded(folder)
    assert (tmp_path / "has-run").exists()


def marked(source: Path, root: Path) -> Path:
    """A copy whose every module makes the file `has-run` when it is imported."""
    folder = Path(shutil.copytree(source, root / "marked"))
    for file in folder.glob("*.py"):
        text = file.read_text()
        mark = f'\nfrom pathlib import Path as _Path\n\n_Path(r"{root / "has-run"}").touch()\n'
        file.write_text(text + mark)
    return folder


@pytest.mark.parametrize("habit", ["tuple_cache", "python_tokenizer"])
def test_without_trust_the_launcher_refuses_and_runs_nothing(
    habit: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = marked(folders(habit), tmp_path)
    server = Server("--model-id", folder, "--dtype", "float32")
    server.start()
    try:
        assert server.wait_exit(timeout_s=10) > 0
    finally:
        server.kill()
    file = "config.json" if habit == "tuple_cache" else "tokenizer_config.json"
    assert f"{file} has auto_map" in server.log()
    assert "--trust-remote-code" in server.log()
    assert not (tmp_path / "has-run").exists()


@pytest.mark.parametrize("place", ["text_config", "processor_config.json", "preprocessor_config.json"])
def test_code_that_only_a_part_of_the_model_names_does_not_run_either(
    place: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = marked(folders("nested_relative"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    reference = {"AutoConfig": "text_settings.NestedTextConfig", "AutoProcessor": "blocks.PlainBlock"}
    if place == "text_config":
        config["text_config"]["auto_map"] = reference
        key = "config.json has text_config.auto_map"
    else:
        (folder / place).write_text(json.dumps({"auto_map": reference}))
        key = f"{place} has auto_map"
    (folder / "config.json").write_text(json.dumps(config))
    server = Server("--model-id", folder)
    server.start()
    try:
        assert server.wait_exit(timeout_s=10) > 0
    finally:
        server.kill()
    assert key in server.log(), server.log()
    with pytest.raises(ModelError):
        loaded(folder, trust_remote_code=False)
    assert not (tmp_path / "has-run").exists()


@pytest.mark.parametrize("habit", ["python_tokenizer", "seq_first", "no_cache"])
def test_the_launcher_serves_them_with_the_flag(habit: str, folders: Callable[[str], Path]) -> None:
    folder = folders(habit)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = custom_models.plain(folder)
    prompts = [CORPUS[at : at + 60] for at in (0, 700, 905)]
    eos = 0
    with Server("--model-id", folder, "--trust-remote-code", "--dtype", "float32") as server:
        answers = server.client.together(
            [functools.partial(server.client.generate, prompt, max_new_tokens=COUNT) for prompt in prompts]
        )
        streamed = [server.client.generate_stream(prompt, max_new_tokens=COUNT) for prompt in prompts]
    for prompt, answer, stream in zip(prompts, answers, streamed, strict=True):
        ids = custom_models.greedy(model, tokenizer.encode(prompt), COUNT)
        ids = ids[: ids.index(eos) + 1] if eos in ids else ids
        assert answer.token_ids == stream.token_ids == ids
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert answer.text == stream.text == text


def test_a_python_tokenizer_streams_whole_characters_and_stops_at_strings(folders: Callable[[str], Path]) -> None:
    """The model repeats what it is told: characters of several tokens must come whole, and a stop string is found
    wherever in a token it ends."""
    folder = folders("python_tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with Server("--model-id", folder, "--trust-remote-code", "--dtype", "float32") as server:
        client = server.client
        for text in ("東京の朝 👩‍🚀✨", "Größe, façade", "<|end|> is special"):
            tokens = client.ok("/tokenize", {"inputs": text})
            assert [token["id"] for token in tokens] == tokenizer.encode(text)
            assert tokens[-1]["stop"] == len(text.encode())
        body = {"inputs": CORPUS[:80], "parameters": {"max_new_tokens": 40, "details": True}}
        events = list(client.stream("/generate_stream", body))
        ids = [event["token"]["id"] for event in events]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
        assert text == events[-1]["generated_text"] == whole
        middle = len(whole) // 2
        stop = whole[middle : middle + 3]
        answer = client.generate(CORPUS[:80], max_new_tokens=40, stop=[stop])
        assert answer.finish_reason == "stop_sequence"
        assert answer.text == whole[: whole.index(stop) + len(stop)]
