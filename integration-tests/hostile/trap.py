"""A tiny Llama with custom code that misbehaves once on order, and its right answers."""

import json
from pathlib import Path
from typing import Any

import torch
from support import models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

_CODE = '''
"""A Llama that checks for an order before each step, and obeys it once."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import torch

from .trap import TrapConfig, TrapEmbedding, TrapForCausalLM


class HostileTrapConfig(TrapConfig):
    model_type = "hostile_trap"

    def __init__(self, orders="", kill_twice_token=None, **kwargs):
        super().__init__(**kwargs)
        self.orders = orders
        self.kill_twice_token = kill_twice_token


def obey(order):
    if order == "exit":
        os._exit(13)
    if order == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == "system-exit":
        sys.exit("the model has had enough")
    if order == "hang":
        time.sleep(100_000)
    if order == "spin":
        while True:
            pass
    if order == "deaf":
        # Holds the interpreter's lock, so that no thread of this process runs.
        ctypes.PyDLL(None).sleep(100_000)
    if order == "slow":
        time.sleep(2)
    if order == "raise":
        raise RuntimeError("ordered to fail")
    if order == "memory":
        raise MemoryError("ordered to have none left")
    if order == "gpu-memory":
        raise torch.OutOfMemoryError("ordered to have none left")
    if order == "flood":
        for number in range(50_000):
            print("flood", number, "x" * 100, flush=False)
        sys.stdout.flush()
    if order == "terminal":
        print("\\x1b]0;owned\\x07\\x1b[2J obeyed", flush=True)
        print("\\x1b[31m red", file=sys.stderr, flush=True)


class HostileTrapEmbedding(TrapEmbedding):
    def forward(self, token_ids):
        orders = Path(self.trap.orders)
        if orders.exists():
            order = orders.read_text()
            orders.unlink()
            print("obeying", order, flush=True)
            obey(order)
        # Twice in a row, since the model may generate a single one by itself.
        kills = (token_ids == self.trap.kill_twice_token).flatten()
        if (kills[1:] & kills[:-1]).any():
            os._exit(13)
        return super().forward(token_ids)


class HostileTrapForCausalLM(TrapForCausalLM):
    config_class = HostileTrapConfig
    embedding_class = HostileTrapEmbedding
'''


class Trap:
    """The model's folder, and its orders."""

    def __init__(self, folder: Path, step_delay_s: float = 0.01) -> None:
        self.folder = models.trap_model(folder, step_delay_s)
        self._orders = folder.parent / f"{folder.name}.orders"
        config = json.loads((folder / "config.json").read_text())
        classes = {"AutoConfig": "HostileTrapConfig", "AutoModelForCausalLM": "HostileTrapForCausalLM"}
        config |= {
            "model_type": "hostile_trap",
            "architectures": [classes["AutoModelForCausalLM"]],
            "auto_map": {name: f"hostile_trap.{value}" for name, value in classes.items()},
            "orders": str(self._orders),
            "kill_twice_token": config["kill_token"],
            # Disables the single tokens of the base trap.
            **dict.fromkeys(("kill_token", "raise_token", "raise_in_a_crowd_token"), -1),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "hostile_trap.py").write_text(_CODE)

    def order(self, what: str) -> None:
        """Gives an order, which the model obeys once, in its next step."""
        partial = self._orders.with_suffix(".partial")
        partial.write_text(what)
        partial.rename(self._orders)

    def was_obeyed(self) -> bool:
        """True if the last order was taken."""
        return not self._orders.exists()

    def right_answers(self, prompts: list[str], num_tokens: int) -> list[list[int]]:
        """Greedy tokens of Transformers' `generate()`."""
        plain = self.folder.with_name(f"{self.folder.name}-plain")
        models.build("llama", plain)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"))
        model: Any = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        answers = []
        for prompt in prompts:
            ids = torch.tensor([tokenizer.encode(prompt)])
            made = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
            answers.append(made[0, ids.shape[1] :].tolist())
        return answers
