"""The examples of the Python API do what they say, and its types are those that a user's checker sees."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gridwork
import pytest
from gridwork import LLM
from support import encoders
from support.paths import GRIDWORK, ROOT

os.environ.setdefault("GRIDWORK_BIN", str(GRIDWORK))

MODULES = ("gridwork", "gridwork.errors", "gridwork.outputs", "gridwork.sampling", "gridwork.llm", "gridwork.async_llm")


def test_every_example_of_the_modules_is_true(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    classifier = encoders.classifier(tmp_path / "classifier", minilm, ["LABEL_0", "LABEL_1", "LABEL_2"])
    reranker = encoders.classifier(tmp_path / "reranker", minilm, ["relevance"])
    with LLM(smollm2, dtype="float32") as llm, LLM(minilm) as encoder:
        with LLM(classifier) as of_labels, LLM(reranker) as of_ranks:
            names: dict[str, Any] = {"MODEL": str(smollm2), "llm": llm, "encoder": encoder}
            names |= {"classifier": of_labels, "reranker": of_ranks}
            tried = 0
            for name in MODULES:
                module = importlib.import_module(name)
                result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
                assert result.failed == 0, name
                tried += result.attempted
    assert tried > 20


def test_every_public_class_and_method_is_described() -> None:
    for name in gridwork.__all__:
        value = getattr(gridwork, name)
        if isinstance(value, type):
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name
    for method in ("generate", "chat", "embed", "encode", "classify", "score", "rerank"):
        assert ">>>" in (getattr(LLM, method).__doc__ or ""), method


def test_the_page_of_the_python_api_shows_programs_that_run(smollm2: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    programs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(programs) >= 2
    for number, (program, expected) in enumerate(programs):
        path = tmp_path / f"{number}.py"
        path.write_text(program.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(smollm2)))
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected


def environment() -> dict[str, str]:
    search = os.pathsep.join(str(ROOT / each) for each in ("python", "server", "kernels"))
    return os.environ | {"PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}


def check_types(folder: Path, text: str) -> str:
    """Messages of mypy's strict mode about a user's file."""
    path = folder / "user.py"
    path.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(path)]
    env = environment() | {"MYPYPATH": str(ROOT / "python")}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False).stdout


def test_types_are_what_a_user_expects(tmp_path: Path) -> None:
    right = """
from collections.abc import AsyncIterator, Iterator
from gridwork import LLM, AsyncLLM, RequestOutput, SamplingParams

llm = LLM("gpt2", dtype="float32", tensor_parallel_size=1)
params = SamplingParams(temperature=0.8, stop=["x"])
listed: list[RequestOutput] = llm.generate(["a", "b"], params)
of_ids: list[RequestOutput] = llm.generate([[1, 2], [3]], params)
one: list[RequestOutput] = llm.generate("a", {"temperature": 0})
streamed: Iterator[RequestOutput] = llm.generate("a", params, stream=True)
lazy: Iterator[RequestOutput] = llm.generate(iter(["a"]), params)
text: str = listed[0].outputs[0].text
vector: list[float] = llm.embed("a")[0].outputs.embedding
chatted: list[RequestOutput] = llm.chat([{"role": "user", "content": "a"}], tools=[])

async def main() -> None:
    async with AsyncLLM("gpt2") as twin:
        outputs: list[RequestOutput] = await twin.generate("a")
        pieces: AsyncIterator[RequestOutput] = twin.generate("a", stream=True)
"""
    assert "Success" in (said := check_types(tmp_path, right)), said
    for wrong, word in (
        ("LLM('m').generate(5)", "overload"),
        ("LLM('m').generate('a', on_error='ignore')", "overload"),
        ("SamplingParams(temprature=1)", "temprature"),
        ("LLM('m').generate('a')[0].outputs[0].txt", "txt"),
        ("LLM('m').generate('a', stream=True)[0]", "indexable"),
    ):
        said = check_types(tmp_path, f"from gridwork import LLM, SamplingParams\n\n{wrong}\n")
        assert word in said, said


@pytest.mark.parametrize("name", gridwork.__all__)
def test_public_names_are_on_the_page(name: str) -> None:
    assert f"`{name}" in (ROOT / "docs" / "python.md").read_text()
