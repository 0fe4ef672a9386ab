"""The edge of the server: TLS, API keys and what each may use, the port for monitors, the root path, bad files."""

import os
import resource
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
import trustme
from support.hostile_clients import RawClient
from support.paths import GRIDWORK
from support.server import Server, child_environment, free_port, wait_for

TinyModels = Callable[[str], Path]

COMPLETION = {"prompt": "hi", "max_tokens": 1}

#: A text of a certain length, of a token at which no model of these tests misbehaves.
STEADY = {"ignore_eos": True, "allowed_token_ids": [20]}

#: Number of connections that never finish a request.
NUM_SLOW = 2000


class Certificates:
    """An authority, and the files of a server that it signs for."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        """Writes a new certificate and its key."""
        issued = self.authority.issue_cert("127.0.0.1", "localhost")
        write_secret(self.key, issued.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @property
    def flags(self) -> tuple[str, str, str, str]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))


def write_secret(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusal(*flags: str | Path, port: int | None = None) -> str:
    """The message with which a launcher refuses its flags."""
    server = Server(*flags, port=port)
    server.start()
    assert server.wait_exit(60) != 0
    return server.log()


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted(tiny: TinyModels, certificates: Certificates) -> Iterator[Server]:
    flags = ("--model-id", tiny("llama"), "--dtype", "float32", *certificates.flags)
    with Server(*flags, trusted=certificates.trusted()) as server:
        yield server


def served_certificate(server: Server, trusted: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        found = client.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_clients_that_trust_the_authority_are_served(encrypted: Server, certificates: Certificates) -> None:
    assert encrypted.client.post("/v1/completions", COMPLETION).status_code == 200
    with httpx.Client(http2=True, verify=certificates.trusted(), trust_env=False) as client:
        response = client.post(f"{encrypted.url}/v1/completions", json=COMPLETION)
        assert (response.status_code, response.http_version) == (200, "HTTP/2")
    with pytest.raises(httpx.ConnectError):
        httpx.get(encrypted.url + "/health", trust_env=False)
    assert any(f"is ready at https://127.0.0.1:{encrypted.port}" in line for line in encrypted.lines)


def test_a_client_that_does_not_encrypt_is_told_so(encrypted: Server) -> None:
    with RawClient(encrypted.port) as client:
        client.get("/health")
        answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400") and b"https://" in answer


def test_the_health_command_asks_over_tls(encrypted: Server) -> None:
    flags = ("--port", str(encrypted.port), "--tls-cert", "any", "--tls-key", "any")
    done = subprocess.run(
        [str(GRIDWORK), "health", *flags], capture_output=True, text=True, env=child_environment(), timeout=30
    )
    assert done.returncode == 0, done.stdout


def test_a_new_certificate_is_taken_up_and_a_broken_one_is_not(encrypted: Server, certificates: Certificates) -> None:
    trusted = certificates.trusted()
    first = served_certificate(encrypted, trusted)
    certificates.cert.write_text("half of a file")
    wait_for(lambda: "connections keep the certificate" in encrypted.log(), 30, "a broken file is told")
    assert served_certificate(encrypted, trusted) == first
    with httpx.Client(verify=trusted, trust_env=False) as kept:
        assert kept.get(encrypted.url + "/health").status_code == 200
        certificates.renew()
        wait_for(lambda: served_certificate(encrypted, trusted) != first, 30, "the new certificate")
        assert kept.get(encrypted.url + "/health").status_code == 200
    ends = encrypted.client.metric("gridwork_tls_certificate_expiry_timestamp_seconds")
    assert ends > 1.7e9


def test_half_open_handshakes_leave_others_alone(encrypted: Server) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(RawClient(encrypted.port))
            client.send(b"\x16\x03\x01")  # the beginning of a ClientHello
        assert encrypted.client.post("/v1/completions", COMPLETION).status_code == 200


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "# keys of the tests\nfirst name=team.a\nnarrow max-requests=1\nspent name=b max-tokens-per-minute=20\n"
    return write_secret(tmp_path_factory.mktemp("keys") / "keys", text)


@pytest.fixture(scope="module")
def keyed(trap: Path, keys: Path) -> Iterator[Server]:
    """A slow model, whose server has keys of a file, of a flag, and a port for monitors."""
    monitors = str(free_port())
    flags = ("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--api-key-file", keys, "--log-requests")
    with Server(*flags, "--api-key", "of-a-flag", "--prometheus-port", monitors) as server:
        server.monitors = f"http://127.0.0.1:{monitors}"  # type: ignore[attr-defined]
        yield server


def test_every_route_but_health_needs_a_key(keyed: Server) -> None:
    http = keyed.client.http
    for path in ("/health", "/livez", "/ping", "/"):
        assert http.get(path).status_code == 200, path
    for path in ("/metrics", "/info", "/v1/models", "/docs", "/api-doc/openapi.json", "/version", "/nowhere"):
        response = http.get(path)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert "access-control-allow-origin" not in http.get(path, headers={"origin": "https://a.example"}).headers
    for key in ("first", "of-a-flag"):
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200, key
        assert http.get("/metrics", headers={"x-api-key": key}).status_code == 200, key
        assert http.get("/info", headers={"api-key": key}).status_code == 200, key
    for wrong in ("firs", "firstt", "name=team.a", "#", "keys"):
        assert http.get("/v1/models", headers=bearer(wrong)).status_code == 401, wrong
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert http.options("/v1/completions", headers=preflight).status_code == 401


def test_the_port_for_monitors_needs_no_key_and_serves_nothing_else(keyed: Server) -> None:
    url: str = keyed.monitors  # type: ignore[attr-defined]
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert "\ngridwork_queue_size 0" in client.get("/metrics").text
        assert client.get("/health").status_code == 200
        assert client.get("/livez").status_code == 200
        for path in ("/info", "/v1/models", "/docs"):
            assert client.get(path).status_code == 404, path
        assert client.post("/v1/completions", json=COMPLETION).status_code == 404


def test_no_key_is_in_a_process_list_or_in_the_log(keyed: Server) -> None:
    assert keyed.client.post("/v1/completions", COMPLETION, headers=bearer("first")).status_code == 200
    wait_for(lambda: "team.a" in keyed.log(), 20, "the name of the key in the log")
    assert keyed.process is not None
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (keyed.pid, *(p.pid for p in keyed.note_family()))]
    assert any(b"--api-key-file" in line for line in lines)
    for key in (b"of-a-flag", b"narrow"):
        assert not any(key in line for line in lines)
        assert key.decode() not in keyed.log()


def test_a_key_has_its_number_of_requests_at_once(keyed: Server) -> None:
    http = keyed.client.http
    body = {"prompt": "hi", "max_tokens": 100, "stream": True, **STEADY}
    with http.stream("POST", "/v1/completions", json=body, headers=bearer("narrow")) as running:
        assert running.status_code == 200
        lines = running.iter_lines()  # which would close the answer if it were dropped
        next(lines)
        refused = http.post("/v1/completions", json=COMPLETION, headers=bearer("narrow"))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        assert http.post("/v1/completions", json=COMPLETION, headers=bearer("first")).status_code == 200
        refused = http.post("/v1/messages", json=message(), headers={"x-api-key": "narrow"})
        assert refused.status_code == 429, refused.text
        assert refused.json()["error"]["type"] == "rate_limit_error"
    wait_for(
        lambda: http.post("/v1/completions", json=COMPLETION, headers=bearer("narrow")).status_code == 200,
        20,
        "a place is free again",
    )


def message() -> dict[str, object]:
    return {"model": "any", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}


def test_a_key_has_its_tokens_a_minute(keyed: Server) -> None:
    body = {"prompt": "a b c d e f", "max_tokens": 30, **STEADY}
    http = keyed.client.http
    assert http.post("/v1/completions", json=body, headers=bearer("spent")).status_code == 200
    wait_for(lambda: spent(http) is not None, 20, "the tokens are counted")
    refused = spent(http)
    assert refused is not None
    assert "20 tokens a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    client = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="spent", max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="any", prompt="a", max_tokens=1)
    assert http.post("/v1/completions", json=body, headers=bearer("first")).status_code == 200


def spent(http: httpx.Client) -> httpx.Response | None:
    """The refusal of a key whose tokens are spent; None when it is answered."""
    response = http.post("/v1/completions", json=COMPLETION, headers=bearer("spent"))
    return response if response.status_code == 429 else None


def test_a_changed_file_of_keys_is_taken_up(keyed: Server, keys: Path) -> None:
    http = keyed.client.http
    status = lambda key: http.get("/v1/models", headers=bearer(key)).status_code  # noqa: E731
    text = keys.read_text()
    write_secret(keys, text + "added\n")
    wait_for(lambda: status("added") == 200, 30, "an added key is accepted")
    write_secret(keys, "")
    wait_for(lambda: "the API keys stay as they were" in keyed.log(), 30, "an empty file is told")
    assert status("added") == 200
    write_secret(keys, text)
    wait_for(lambda: status("added") == 401, 30, "a removed key is refused")
    assert status("first") == 200 and status("of-a-flag") == 200


def test_a_key_with_many_requests_does_not_hold_up_another(trap: Path) -> None:
    flags = ("--dtype", "float32", "--trust-remote-code", "--api-key", "many,few", "--max-batch-size", "2")
    with Server("--model-id", trap, *flags, "--max-concurrent-requests", "40") as server:
        done: list[str] = []
        body = {"prompt": "hi", "max_tokens": 20, **STEADY}

        def ask(key: str) -> int:
            status = server.client.post("/v1/completions", body, headers=bearer(key)).status_code
            done.append(key)
            return status

        with ThreadPoolExecutor(64) as pool:
            first = [pool.submit(ask, "many") for _ in range(40)]
            wait_for(lambda: queued(server) >= 30, 60, "the first key's requests wait")
            # All places are taken, and the second key has its share even so.
            second = [pool.submit(ask, "few") for _ in range(4)]
            assert [future.result() for future in second] == [200] * 4
            before = done.index("few"), len(done)
            assert [future.result() for future in first] == [200] * 40
        # Two run when the others come; then the keys take turns, and none of the 30 waiting ones is due before.
        last = len(done) - 1 - done[::-1].index("few")
        assert last <= before[0] + 12, done


def queued(server: Server) -> float:
    page = server.client.http.get("/metrics", headers=bearer("few")).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("gridwork_queue_size"))


# --- paths and connections ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tiny: TinyModels) -> Iterator[Server]:
    """A server behind a proxy that publishes it under a path, with room for slow clients."""
    flags = ("--root-path", "/llm/", "--max-connections", str(NUM_SLOW + 100))
    with Server("--model-id", tiny("llama"), "--dtype", "float32", *flags) as server:
        yield server


def test_the_root_path_may_stand_before_every_route(published: Server) -> None:
    client = published.client
    for root in ("", "/llm"):
        assert client.get(f"{root}/health").status_code == 200
        assert client.post(f"{root}/v1/completions", COMPLETION).status_code == 200
        assert client.get(f"{root}/v1/models").json()["data"]
        page = client.http.get(f"{root}/docs/")
        assert page.status_code == 200
        initializer = client.get(f"{root}/docs/swagger-initializer.js").text
        assert "../api-doc/openapi.json" in initializer
    document = client.get("/llm/api-doc/openapi.json").json()
    assert document["servers"] == [{"url": "/llm"}]
    assert client.get("/llms/v1/models").status_code == 404


def test_slow_and_half_open_connections_leave_honest_clients_unharmed(published: Server) -> None:
    expected = published.client.generate("honest", max_new_tokens=8).token_ids
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        for number in range(NUM_SLOW):
            client = stack.enter_context(RawClient(published.port))
            # Nothing, half a head, or a head whose body does not come.
            if number % 3 == 1:
                client.send(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-")
            elif number % 3 == 2:
                client.send(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 50000\r\n\r\n{")
        honest = [lambda: published.client.generate("honest", max_new_tokens=8).token_ids] * 32
        for _ in range(3):
            assert published.client.together(honest) == [expected] * 32
    assert published.client.get("/health").status_code == 200


# --- bad files ------------------------------------------------------------------------------------------------------


def test_files_that_cannot_guard_the_edge_are_refused_at_the_start(tiny: TinyModels, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    good, foreign = Certificates(mine), Certificates(other)
    cert, key = str(good.cert), str(good.key)
    text = tmp_path / "text"
    text.write_text("no certificate")
    empty = write_secret(tmp_path / "empty", "")
    open_keys = write_secret(tmp_path / "open", "key\n", mode=0o644)
    wrong_keys = write_secret(tmp_path / "wrong", "one two\n")
    open_key = write_secret(tmp_path / "key", good.key.read_bytes(), mode=0o644)
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--tls-cert", cert), "--tls-key"),
        (("--tls-key", key), "--tls-cert"),
        (("--tls-cert", cert, "--tls-key", key, "--uds", str(tmp_path / "s")), "--uds"),
        (("--tls-cert", str(tmp_path / "none"), "--tls-key", key), "cannot be read"),
        (("--tls-cert", str(text), "--tls-key", key), "has no certificate"),
        (("--tls-cert", cert, "--tls-key", cert), "rights"),
        (("--tls-cert", cert, "--tls-key", str(empty)), "has no private key"),
        (("--tls-cert", cert, "--tls-key", str(foreign.key)), "does not belong"),
        (("--tls-cert", cert, "--tls-key", str(open_key)), "rights"),
        (("--api-key-file", str(tmp_path / "none")), "cannot be read"),
        (("--api-key-file", str(tmp_path)), "no regular file"),
        (("--api-key-file", str(empty)), "has no key"),
        (("--api-key-file", str(open_keys)), "rights"),
        (("--api-key-file", str(wrong_keys)), "line 1"),
        (("--max-requests-per-key", "1"), "needs API keys"),
        (("--max-tokens-per-minute-per-key", "1"), "needs API keys"),
        (("--root-path", "llm"), "--root-path"),
        (("--root-path", "/a b"), "--root-path"),
        (("--log-level", "loud"), "--log-level"),
        (("--json-output=perhaps",), "--json-output"),
    ]
    if os.geteuid() != 0:
        unreadable = write_secret(tmp_path / "unreadable", good.cert.read_bytes(), mode=0o000)
        cases.append((("--tls-cert", str(unreadable), "--tls-key", key), "cannot be read"))
    with ThreadPoolExecutor(2) as pool:
        messages = pool.map(lambda case: refusal("--model-id", tiny("llama"), *case[0]), cases)
        for (flags, part), message in zip(cases, messages, strict=True):
            errors = [line for line in message.splitlines() if line.startswith("error:")]
            assert len(errors) == 1, (flags, message)
            named = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
            assert part in message and any(flag in message for flag in named), (flags, message)


def test_a_port_that_is_taken_is_refused_by_its_flag(tiny: TinyModels) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refusal("--model-id", tiny("llama"), "--prometheus-port", port)
        assert f"port {port}" in message and "--prometheus-port" in message
    same = free_port()
    message = refusal("--model-id", tiny("llama"), "--prometheus-port", str(same), port=same)
    assert "--prometheus-port" in message and "also --port" in message
