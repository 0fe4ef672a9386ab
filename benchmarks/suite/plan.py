"""Chooses what a run measures, by names, and estimates its time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from suite.contestants import OWN, PEERS, names
from suite.load import Conversation
from suite.models import MODELS, Model
from suite.workloads import WORKLOADS, Workload

WITHOUT_CLIENTS = ("start", "context", "memory", "structured-beside", "new-schema", "no-schema")
"""Workloads whose levels are not numbers of clients, or not to be chosen."""

BY_NAME_ONLY = ("families",)
"""Workloads that are measured only when they are asked for."""

_START_S = {"gridwork": 10.0, "transformers-serve": 20.0, "vllm": 150.0, "generate": 15.0}
"""Seconds until the first token, on two cores."""

_CHARACTERS_PER_TOKEN = 4.6


class UnknownName(ValueError):
    """The user gave an unknown name; the message lists the known ones."""


@dataclass(frozen=True)
class Plan:
    peers: tuple[str, ...]
    workloads: tuple[Workload, ...]
    models: tuple[Model, ...]
    rounds: int

    def contestants(self, workload: Workload) -> list[str]:
        """Names of the contestants that take part, in the order of their turns."""
        return [name for name in names(list(self.peers)) if _takes_part(name, workload)]

    def of(self, model: Model) -> list[Workload]:
        """The workloads that this model is measured with."""
        return [
            workload
            for workload in self.workloads
            if (not workload.models or model.name in workload.models)
            and (not model.workloads or workload.name in model.workloads)
        ]

    def served(self, workload: Workload) -> bool:
        """True if it shares one start of each server with other workloads. `memory` does not: it needs a smaller
        cache."""
        return workload.name != "memory"

    def estimate_s(self) -> float:
        """Estimated seconds on two cores, from the tokens to compute and typical speeds."""
        return sum(self._model_s(model) for model in self.models) * self.rounds

    def _model_s(self, model: Model) -> float:
        total_s = 0.0
        started = set()
        for workload in self.of(model):
            for name in self.contestants(workload):
                started.add((name, self.served(workload)))
                total_s += sum(_load_s(workload, level, model) for level in workload.levels)
        return total_s + sum(_start_s(name) for name, _served in started)


def choose(peers: str, workloads: str, models: str, rounds: str, clients: str) -> Plan:
    """Makes a plan from lists of names, separated by spaces or commas. Raises `UnknownName`.

    Empty: all workloads but those of `BY_NAME_ONLY`, all models that these fit, three rounds, no peers, and each
    workload's own numbers of clients.
    """
    usual = [name for name in WORKLOADS if name not in BY_NAME_ONLY]
    chosen = [WORKLOADS[name] for name in _known("WORKLOADS", workloads, WORKLOADS) or usual]
    numbers = tuple(_positive("CLIENTS", word) for word in _words(clients))
    if numbers:
        chosen = [
            workload if workload.name in WITHOUT_CLIENTS else replace(workload, levels=numbers) for workload in chosen
        ]
    plan = Plan(
        peers=tuple(_known("PEERS", peers, PEERS)),
        workloads=tuple(chosen),
        models=tuple(MODELS[name] for name in _known("MODELS", models, MODELS) or MODELS),
        rounds=_positive("ROUNDS", rounds or "3"),
    )
    return replace(plan, models=tuple(model for model in plan.models if plan.of(model)))


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _known(variable: str, text: str, known: Iterable[str]) -> list[str]:
    known = list(known)
    for word in _words(text):
        if word not in known:
            raise UnknownName(f"{variable}: there is no {word!r}; there are: {' '.join(known)}")
    return list(dict.fromkeys(_words(text)))


def _positive(variable: str, word: str) -> int:
    if not word.isascii() or not word.isdecimal() or int(word) < 1:
        raise UnknownName(f"{variable}: {word!r} is not a whole number of at least 1")
    return int(word)


def _takes_part(name: str, workload: Workload) -> bool:
    if name == "gridwork" or name in workload.variants:
        return True
    is_peer = name not in OWN and name != "generate"
    return is_peer and workload.peers and name.startswith(workload.peer_prefixes)


def _start_s(name: str) -> float:
    return next((seconds for prefix, seconds in _START_S.items() if name.startswith(prefix)), 10.0)


def wanted_tokens(conversations: Iterable[Conversation]) -> int:
    """Requested tokens of all answers together."""
    return sum(turn.max_tokens for conversation in conversations for turn in conversation)


def _load_s(workload: Workload, level: int, model: Model) -> float:
    conversations = workload.make(level, model.part)
    characters = sum(len(turn.text) for conversation in conversations for turn in conversation)
    at_once = min(8, 1 if workload.name == "context" else level)
    prefill_s = characters / _CHARACTERS_PER_TOKEN / model.prefill_tokens_per_s
    return prefill_s + wanted_tokens(conversations) / (model.decode_tokens_per_s * at_once**0.7)
