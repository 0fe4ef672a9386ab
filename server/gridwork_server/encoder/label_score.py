"""Function that turns the logits of a classifier's or reranker's labels into scores, as the folder names it."""

from enum import StrEnum
from typing import TYPE_CHECKING

from loguru import logger

from gridwork_server.model.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LabelScore(StrEnum):
    """A function from logits to scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    LOGIT = "logit"
    """The logits themselves."""
    TANH = "tanh"


_ACTIVATIONS = {
    "torch.nn.modules.activation.Sigmoid": LabelScore.SIGMOID,
    "torch.nn.modules.linear.Identity": LabelScore.LOGIT,
    "torch.nn.modules.activation.Tanh": LabelScore.TANH,
    "torch.nn.modules.activation.Softmax": LabelScore.SOFTMAX,
}
"""Names that cross-encoders of sentence-transformers use."""


def find(config: "PretrainedConfig", task: Task) -> LabelScore:
    """Function of a model. A reranker's stands in config.json, where sentence-transformers wrote it:
    `sentence_transformers.activation_fn`, or `sbert_ce_default_activation_function` in older versions. Otherwise it
    follows from `problem_type`, as in Transformers' pipeline for text classification: the logits themselves for
    regression, the sigmoid of each for several labels at once, the sigmoid for one label, the softmax for several."""
    if task == Task.RERANK and (named := _activation(config)) is not None:
        if (score := _ACTIVATIONS.get(_long(named))) is not None:
            return score
        logger.warning(
            f"config.json has the activation `{named}`, which this version does not know; scores are sigmoids"
        )
        return LabelScore.SIGMOID
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return LabelScore.LOGIT
    if problem == "multi_label_classification" or config.num_labels == 1:
        return LabelScore.SIGMOID
    return LabelScore.SOFTMAX


def _activation(config: "PretrainedConfig") -> str | None:
    section = getattr(config, "sentence_transformers", None)
    if isinstance(section, dict) and isinstance(section.get("activation_fn"), str):
        return str(section["activation_fn"])
    older = getattr(config, "sbert_ce_default_activation_function", None)
    return older if isinstance(older, str) else None


def _long(name: str) -> str:
    """Full name of a short one: `torch.nn.Sigmoid` is defined in `torch.nn.modules.activation`."""
    last = name.rsplit(".", 1)[-1]
    if not name.startswith("torch.nn."):
        return name
    return next((known for known in _ACTIVATIONS if known.endswith(f".{last}")), name)
