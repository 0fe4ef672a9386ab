"""Models with Python code of their own, behind the real launcher: their own tokens with trust, and no code without."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from support import custom_models
from support.server import Server
from support.text import CORPUS

COUNT = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a habit's model."""
    root = tmp_path_factory.mktemp("custom")
    return functools.cache(lambda habit: custom_models.build(habit, root / habit))


@pytest.mark.parametrize("habit", ["tuple_cache", "python_tokenizer"])
def test_the_launcher_without_trust_refuses_and_runs_no_code(
    habit: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = custom_models.marked(folders(habit), tmp_path)
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


@pytest.mark.parametrize("place", custom_models.REFERENCES)
def test_code_named_by_a_part_of_the_model_does_not_run_without_trust(
    place: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = custom_models.marked(folders("nested_relative"), tmp_path)
    key = custom_models.refer_from(place, folder)
    server = Server("--model-id", folder)
    server.start()
    try:
        assert server.wait_exit(timeout_s=10) > 0
    finally:
        server.kill()
    assert key in server.log(), server.log()
    assert not (tmp_path / "has-run").exists()


@pytest.mark.parametrize("habit", ["python_tokenizer", "seq_first", "no_cache"])
def test_models_with_code_are_served_with_the_flag(habit: str, folders: Callable[[str], Path]) -> None:
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


def test_a_python_tokenizer_streams_characters_and_stops_at_strings(folders: Callable[[str], Path]) -> None:
    """Characters of several tokens must be streamed whole, and a stop string is found wherever in a token it ends."""
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
