"""The task follows from the folder. A `--task` that contradicts it is refused, with tasks that would work."""

import json
from pathlib import Path
from typing import Any

import pytest

from gridwork_server.errors import ModelError
from gridwork_server.model.task import Task, choose

_MODULES = json.dumps([{"type": "sentence_transformers.models.Transformer"}, {"type": "a.b.Pooling"}])


def content(architecture: str | None, **further: Any) -> dict[str, Any]:
    return {"architectures": architecture and [architecture], **further}


@pytest.mark.parametrize(
    ("config", "has_modules", "expected"),
    [
        (content("LlamaForCausalLM"), False, Task.GENERATE),
        (content("GPT2LMHeadModel"), False, Task.GENERATE),
        (content(None), False, Task.GENERATE),
        (content("Qwen3ForCausalLM"), True, Task.EMBED),
        (content("BertModel"), True, Task.EMBED),
        (content("BertModel"), False, Task.EMBED),
        (content("T5EncoderModel"), True, Task.EMBED),
        (content("BertForMaskedLM"), False, Task.FILL_MASK),
        (content("BertForMaskedLM"), True, Task.EMBED),
        (content("BertForSequenceClassification"), False, Task.CLASSIFY),
        (content("BertForSequenceClassification", id2label={"0": "a"}), False, Task.RERANK),
        (content("BertForSequenceClassification", id2label={"0": "a", "1": "b"}), True, Task.CLASSIFY),
    ],
)
def test_the_task_follows_from_the_folder(
    tmp_path: Path, config: dict[str, Any], has_modules: bool, expected: Task
) -> None:
    if has_modules:
        (tmp_path / "modules.json").write_text(_MODULES)
    assert choose("auto", tmp_path, config) == expected
    assert choose(expected.value, tmp_path, config) == expected


@pytest.mark.parametrize(
    ("wish", "config", "would_work"),
    [
        ("generate", content("BertForMaskedLM"), "--task embed or --task fill-mask"),
        ("rerank", content("BertForSequenceClassification"), "--task embed or --task classify"),
        ("classify", content("LlamaForCausalLM"), "--task generate or --task embed"),
        ("fill-mask", content("BertModel"), "--task generate or --task embed"),
    ],
)
def test_a_task_that_contradicts_the_folder_is_refused(
    tmp_path: Path, wish: str, config: dict[str, Any], would_work: str
) -> None:
    with pytest.raises(ModelError, match=f"--task {wish} does not work with .*use {would_work}"):
        choose(wish, tmp_path, config)


def test_heads_without_a_task_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"BertForTokenClassification.*--task embed"):
        choose("auto", tmp_path, content("BertForTokenClassification"))
    assert choose("embed", tmp_path, content("BertForTokenClassification")) == Task.EMBED
