"""What a model is served for, as its folder tells it, and whether it can be served for what was asked."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gridwork_server.errors import ModelError


class Task(StrEnum):
    """What a model is served for; the names are those of `--task`."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"
    RERANK = "rerank"
    FILL_MASK = "fill-mask"


@dataclass(frozen=True)
class Folder:
    """What a model folder says of itself, without Transformers."""

    path: Path
    architectures: tuple[str, ...]
    """Names of the classes that the weights were saved from; empty when config.json does not say."""
    num_labels: int
    is_encoder_decoder: bool
    has_pooling: bool
    """Whether sentence-transformers' files make an embedder of it."""

    @staticmethod
    def read(path: Path, content: Any) -> "Folder":
        """content: of config.json."""
        architectures = content.get("architectures") or ()
        return Folder(
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


# What the heads that no task here uses are for, by the end of their classes' names.
_OTHER_HEADS = {
    "ForTokenClassification": "labels every token",
    "ForQuestionAnswering": "marks answers in texts",
    "ForMultipleChoice": "chooses among answers",
    "ForNextSentencePrediction": "tells whether a sentence follows another",
}


def choose(wish: str, path: Path, content: Any) -> Task:
    """The task for a folder. wish: of `--task`; content: of config.json. Raises ModelError when the folder's model
    cannot do what is wished for, or nothing that is served."""
    folder = Folder.read(path, content)
    if wish == "auto":
        return _found(folder)
    task = Task(wish)
    if (reason := _objection(task, folder)) is not None:
        fitting = [f"--task {other}" for other in Task if other != task and _objection(other, folder) is None]
        raise ModelError(f"--task {task} does not go with {path}: {reason}; {_or(fitting)} would work")
    return task


def _found(folder: Folder) -> Task:
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
                "of this version does that; --task embed would serve what lies under that head"
            )
    is_bare = folder.architecture.endswith(("Model", "Encoder")) and not folder.architecture.endswith("HeadModel")
    if is_bare and not folder.is_encoder_decoder:
        return Task.EMBED
    return Task.GENERATE


def _objection(task: Task, folder: Folder) -> str | None:
    """Why the model cannot do the task."""
    name = folder.architecture
    labels = f"{folder.num_labels} label{'s' if folder.num_labels > 1 else ''}"
    match task:
        case Task.GENERATE if folder.is_classifier or folder.is_masked:
            return f"its weights are those of a {name}, which does not generate"
        case Task.GENERATE if name.endswith(("Model", "Encoder")) and not name.endswith("HeadModel"):
            # A decoder's embeddings may serve as its head; whether they do, its class knows.
            return f"its weights are those of a {name}, without a head that generates" if folder.has_pooling else None
        case Task.CLASSIFY if not folder.is_classifier:
            return f"its weights are those of a {name or 'model without a named head'}, not of a classifier"
        case Task.RERANK if not folder.is_classifier:
            return f"its weights are those of a {name or 'model without a named head'}, not of a reranker"
        case Task.RERANK if folder.num_labels != 1:
            return f"it tells {labels} apart, where a reranker has one"
        case Task.FILL_MASK if not folder.is_masked:
            return f"its weights are those of a {name or 'model without a named head'}, not of a masked language model"
    return None


def _num_labels(content: Any) -> int:
    """As Transformers reads it; its default is 2."""
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
