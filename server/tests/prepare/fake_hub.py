"""Serves a model hub on this machine: the few routes that the hub library requests, over HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Models by name, each a dictionary from file name to content."""

    models: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    """Files that are answered with an error."""
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves a hub on a free port within a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_args: object) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            for name, files in hub.models.items():
                if path.startswith(f"/api/models/{name}/revision/"):
                    if path.rpartition("/")[2] not in ("main", COMMIT):
                        return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
                    siblings = [
                        {"rfilename": file, "size": len(data), "blobId": _blob(data)} for file, data in files.items()
                    ]
                    return self._send_json({"id": name, "sha": COMMIT, "siblings": siblings}, with_body)
                if path.startswith(f"/api/models/{name}/tree/"):
                    tree = [
                        {"type": "file", "path": file, "size": len(data), "oid": _blob(data)}
                        for file, data in files.items()
                    ]
                    return self._send_json(tree, with_body)
                prefix = f"/{name}/resolve/{COMMIT}/"
                if path.startswith(prefix):
                    if name in hub.gated:
                        return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
                    return self._send_file(path.removeprefix(prefix), files, with_body)
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

        def _send_file(self, file: str, files: dict[str, bytes], with_body: bool) -> None:
            data = files[file]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_blob(data)}"'}
            if with_body and file in hub.broken:
                return self._send(500, b"", {}, with_body)
            return self._send(200, data, headers, with_body)

        def _send_json(self, value: object, with_body: bool) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, with_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
