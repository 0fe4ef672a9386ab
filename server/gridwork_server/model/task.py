"""Chooses the task that a model is served for, by its folder and `--task`."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gridwork_server.errors import ModelError


class Task(StrEnum):
    """Task that a model is served for; the names are those of `--task`."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"
    RERANK = "rerank"
    FILL_MASK = "fill-mask"


@dataclass(frozen=True)
class ModelFolder:
    """Facts of a model folder that can be read without Transformers."""

    path: Path
    architectures: tuple[str, ...]
    """Names of the classes that the weights were saved from; empty when config.json does not tell."""
    num_labels: int
    is_encoder_decoder: bool
    has_pooling: bool
    """True if sentence-transformers' files make the model an embedder."""

    @staticmethod
    def read(path: Path, content: Any) -> "ModelFolder":
        """Reads the folder's facts. content: of config.json."""
        architectures = content.get("architectures") or ()
        return ModelFolder(
            path=path,
            architectures=tuple(str(name) for name in architectures),
            num_labels=_num_labels(content),
            is_encoder_decoder=bool(content.get("is_encoder_decoder")),
            has_pooling=(path / "1_Pooling" / "config.json").is_file() or _names_pooling(path / "modules.json"),
        )

    @property
    def architecture(self) -> str:
        return self.architectures[0] if self.architectures else ""

    @property
    def is_classifier(self) -> bool:
        return self.architecture.endswith("ForSequenceClassification")

    @property
    def is_masked(self) -> bool:
        return self.architecture.endswith("ForMaskedLM")


# Purpose of the heads that no task here uses, by the end of their class names.
_OTHER_HEADS = {
    "ForTokenClassification": "labels every token",
    "ForQuestionAnswering": "marks answers in texts",
    "ForMultipleChoice": "chooses among answers",
    "ForNextSentencePrediction": "tells whether a sentence follows another",
}


def choose(wish: str, path: Path, content: Any) -> Task:
    """Chooses the task for a folder. wish: value of `--task`; content: of config.json. Raises ModelError when the model
    cannot do that task, or none of the tasks."""
    folder = ModelFolder.read(path, content)
    if wish == "auto":
        return _task_of(folder)
    task = Task(wish)
    if (reason := _reason_against(task, folder)) is not None:
        fitting = [f"--task {other}" for other in Task if other != task and _reason_against(other, folder) is None]
        raise ModelError(f"--task {task} does not work with {path}: {reason}; use {_or(fitting)}")
    return task


def _task_of(folder: ModelFolder) -> Task:
    if folder.is_classifier:
        return Task.RERANK if folder.num_labels == 1 else Task.CLASSIFY
    if folder.has_pooling:
        return Task.EMBED
    if folder.is_masked:
        return Task.FILL_MASK
    for ending, what in _OTHER_HEADS.items():
        if folder.architecture.endswith(ending):
            raise ModelError(
                f"{folder.path / 'config.json'} says that the model is a {folder.architecture}, which {what}: no task "
                "of this version does that; use --task embed for embeddings of the model under that head"
            )
    is_bare = folder.architecture.endswith(("Model", "Encoder")) and not folder.architecture.endswith("HeadModel")
    if is_bare and not folder.is_encoder_decoder:
        return Task.EMBED
    return Task.GENERATE


def _reason_against(task: Task, folder: ModelFolder) -> str | None:
    """Reason why the model cannot do the task; None when it can."""
    name = folder.architecture
    labels = f"{folder.num_labels} label{'s' if folder.num_labels > 1 else ''}"
    match task:
        case Task.GENERATE if folder.is_classifier or folder.is_masked:
            return f"its weights are those of a {name}, which does not generate"
        case Task.GENERATE if name.endswith(("Model", "Encoder")) and not name.endswith("HeadModel"):
            # A decoder's embeddings may serve as its head; only its class knows whether they do.
            return f"its weights are those of a {name}, without a head that generates" if folder.has_pooling else None
        case Task.CLASSIFY if not folder.is_classifier:
            return f"its weights are those of a {name or 'model without a named head'}, not of a classifier"
        case Task.RERANK if not folder.is_classifier:
            return f"its weights are those of a {name or 'model without a named head'}, not of a reranker"
        case Task.RERANK if folder.num_labels != 1:
            return f"it distinguishes {labels}, and a reranker has one"
        case Task.FILL_MASK if not folder.is_masked:
            return f"its weights are those of a {name or 'model without a named head'}, not of a masked language model"
    return None


def _num_labels(content: Any) -> int:
    """Number of labels as Transformers reads it; its default is 2."""
    labels = content.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    number = content.get("num_labels")
    return number if isinstance(number, int) else 2


def _names_pooling(modules: Path) -> bool:
    try:
        content = json.loads(modules.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, list) and any(
        isinstance(module, dict) and str(module.get("type", "")).endswith(".Pooling") for module in content
    )


def _or(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
