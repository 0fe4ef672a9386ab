import io
import subprocess
import sys

import psutil
import pytest
from suite.machine import parse_cpuinfo
from suite.memory import parse_pss, pss_bytes
from suite.servers import Contestant, ServerFailed, family, last_line, running


def test_a_server_that_ends_is_reported_with_its_error() -> None:
    program = "import sys; print('starting'); raise RuntimeError('no such device')"
    with pytest.raises(ServerFailed, match="ended with status 1: RuntimeError: no such device"):
        with running(Contestant("broken", [sys.executable, "-c", program], "model")):
            pass


def test_the_last_line_prefers_an_error() -> None:
    assert last_line(io.StringIO("a\nValueError: wrong\nbye\n\n")) == "ValueError: wrong"
    assert last_line(io.StringIO("a\nb\n\n")) == "b"
    assert last_line(io.StringIO("")) == "it logged nothing"


def end(leader: "subprocess.Popen[bytes]") -> None:
    members = family(leader.pid)
    for member in members:
        member.kill()
    psutil.wait_procs(members, timeout=10)
    leader.wait()


def test_orphans_are_found_by_their_session() -> None:
    # The middle process ends once it has printed its child, whose parent is then no longer in the session.
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)"
    leader = subprocess.Popen(
        ["bash", "-c", f'{sys.executable} -c "{orphan}"; echo left; sleep 60; true'],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert leader.stdout is not None
        orphan_pid = int(leader.stdout.readline())
        assert leader.stdout.readline() == b"left\n"
        assert {leader.pid, orphan_pid} <= {process.pid for process in family(leader.pid)}
        assert orphan_pid not in {child.pid for child in psutil.Process(leader.pid).children(recursive=True)}
    finally:
        end(leader)


def test_memory_is_summed_over_all_processes() -> None:
    assert parse_pss("55e0-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 90 kB\nPss: 12 kB\nPss_Dirty: 4 kB\n") == 12288
    # One write each: print() of two processes may interleave.
    holder = "import os; held = b'x' * (40 << 20); os.write(1, b'ready' + bytes([10])); input()"
    two = f'{sys.executable} -c "{holder}" < <(sleep 60) & {sys.executable} -c "{holder}" < <(sleep 60); wait'
    leader = subprocess.Popen(["bash", "-c", two], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert leader.stdout is not None
        assert [leader.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        assert 80 << 20 <= pss_bytes(leader.pid) < 200 << 20
    finally:
        end(leader)


def test_the_processor_is_named_with_the_flags_that_choose_kernels() -> None:
    text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 amx_tile sse\n"
    assert parse_cpuinfo(text) == ("AMD EPYC (family 25, model 1)", ("avx2", "amx_tile"))
