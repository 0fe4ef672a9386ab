"""Tests how ranks meet, and the messages that they send."""

import socket
from pathlib import Path

import psutil
import pytest
import torch

from gridwork_server.config import ShardConfig
from gridwork_server.parallel import group
from gridwork_server.parallel.group import RankGroup


def _config(**meeting: object) -> ShardConfig:
    return ShardConfig(model_path=Path("model"), socket="", **meeting)  # type: ignore[arg-type]


def test_rank_0_listens_only_at_the_given_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = group._store(_config(master_addr="127.0.0.1", master_port=port))
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_ranks_of_one_machine_meet_without_a_port(tmp_path: Path) -> None:
    file = tmp_path / "meeting"
    file.touch()
    before = psutil.Process().net_connections("tcp")
    store = group._store(_config(meeting_file=file, master_addr="192.0.2.1", master_port=1))
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert psutil.Process().net_connections("tcp") == before


def test_announcements_are_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: sent.append(tensor.clone()))
    RankGroup(0, 2).announce(2, b"\x80\x04step")
    assert [tensor.tolist() for tensor in sent] == [[7], list(b"\x02\x80\x04step")]

    def receive(tensor: torch.Tensor, src: int) -> None:
        tensor.copy_(sent.pop(0))

    monkeypatch.setattr("torch.distributed.broadcast", receive)
    assert RankGroup(1, 2).next_announced() == (2, b"\x80\x04step")
