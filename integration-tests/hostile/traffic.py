"""Requests of bystanders with known right answers, which measure the cost of a fault for others."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from support.client import events_of
from support.server import Server, wait_for

PROMPTS = ["The boats are past", "Count the seeds", "A good map", "hello world hello world"]
NUM_TOKENS = 120


@dataclass
class Costs:
    """Damage to bystanders."""

    lost: int = 0
    """Requests that ended without their answer."""
    doubled: int = 0
    """Tokens that were sent twice, or out of order."""
    wrong: int = 0
    """Tokens that differ from those of `generate()`."""
    details: list[str] = field(default_factory=list)

    def add(self, name: str, count: int, detail: str) -> None:
        if count:
            setattr(self, name, getattr(self, name) + count)
            self.details.append(f"{name}: {detail[:300]}")


class Cut(Exception):
    """The connection broke, as it does when the router dies."""


class Bystander(threading.Thread):
    """Runs one stream, and repeats it when its connection breaks where that is expected."""

    def __init__(self, server: Server, prompt: str, right: list[int], costs: Costs, may_be_cut: bool) -> None:
        super().__init__(daemon=True)
        self.server, self.prompt, self.right, self.costs, self.may_be_cut = server, prompt, right, costs, may_be_cut
        self.num_tokens = 0
        self.started_over = 0

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                self._ask()
                return
            except Cut as error:
                if not self.may_be_cut or time.monotonic() > deadline:
                    self.costs.add("lost", 1, f"{self.prompt}: {error}")
                    return
                self.started_over += 1
                time.sleep(0.3)
            except Exception as error:
                self.costs.add("lost", 1, f"{self.prompt}: {type(error).__name__}: {error}")
                return

    def _ask(self) -> None:
        body = {"inputs": self.prompt, "parameters": {"max_new_tokens": NUM_TOKENS, "details": True}}
        got: list[int] = []
        finished = False
        try:
            with httpx.stream(
                "POST", self.server.url + "/generate_stream", json=body, timeout=120, trust_env=False
            ) as response:
                if response.status_code != 200:
                    response.read()
                    message = f"{response.status_code} {response.text}"
                    raise Cut(message) if response.status_code == 503 else RuntimeError(message)
                for event in events_of(response):
                    if "error" in event:
                        raise RuntimeError(json.dumps(event))
                    finished = finished or event.get("details") is not None
                    if event["index"] != len(got) + 1:
                        self.costs.add("doubled", 1, f"{self.prompt}: index {event['index']} after {len(got)} tokens")
                    got.append(event["token"]["id"])
                    self.num_tokens = len(got)
        except httpx.HTTPError as error:
            raise Cut(f"after {len(got)} tokens: {type(error).__name__}: {error}") from None
        finally:
            differing = sum(a != b for a, b in zip(got, self.right, strict=False))
            self.costs.add("wrong", differing, f"{self.prompt}: {got} is not {self.right}")
        if not finished:
            raise Cut(f"the stream ended after {len(got)} tokens without an error")
        if len(got) != len(self.right):
            self.costs.add("lost", 1, f"{self.prompt}: {len(got)} of {len(self.right)} tokens")


class Traffic:
    """Bystanders around a fault: streams that began before it and must end as without it."""

    def __init__(self, server: Server, right: list[list[int]], may_be_cut: bool) -> None:
        self.costs = Costs()
        pairs = zip(PROMPTS, right, strict=True)
        self.bystanders = [Bystander(server, prompt, answer, self.costs, may_be_cut) for prompt, answer in pairs]

    def start(self) -> None:
        for bystander in self.bystanders:
            bystander.start()
        wait_for(
            lambda: all(each.num_tokens > 3 or not each.is_alive() for each in self.bystanders),
            60,
            "the bystanders' streams run",
        )

    def finish(self, timeout_s: float = 150.0) -> None:
        deadline = time.monotonic() + timeout_s
        for bystander in self.bystanders:
            bystander.join(max(0.0, deadline - time.monotonic()))
            if bystander.is_alive():
                self.costs.add("lost", 1, f"{bystander.prompt}: no end in {timeout_s:g} s")


def recovery_s(server: Server, right: list[int], within_s: float = 90.0) -> float | None:
    """Seconds until the server is healthy and gives a right answer; None when it does neither."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            if server.is_healthy():
                answer = server.client.generate(PROMPTS[0], max_new_tokens=16)
                return time.monotonic() - began if answer.token_ids == right[:16] else None
        time.sleep(0.1)
    return None


def until_idle(server: Server, condition: Callable[[], bool] | None = None) -> None:
    """Waits until no request holds a place or a block."""
    wait_for(
        lambda: (
            server.client.metric("gridwork_cache_blocks_used") == 0
            and server.client.metric("gridwork_queue_size") == 0
            and (condition is None or condition())
        ),
        30,
        "nothing is held when idle",
    )
