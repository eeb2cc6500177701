"""As much of the hub's protocol as downloading a model needs, served from a folder on 127.0.0.1.

`root/org/name/COMMIT/files...`; the newest commit is `main`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass
class FakeHub:
    root: Path
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Repository -> branch or tag -> commit."""
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    """File -> how many more of its downloads break off half way."""
    down: bool = False
    """Answers 503 to everything."""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, repository: str, revision: str) -> str | None:
        if (self.root / repository / revision).is_dir():
            return revision
        return self.refs.get(repository, {}).get(revision)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:  # noqa: PLR0911  one for each way to refuse
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.down:
            return self._refuse(503, None)
        parts = self.path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        if repository in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if repository in self.hub.private or repository not in self.hub.refs:
            return self._refuse(401, None if repository in self.hub.private else "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        folder = self.hub.root / repository / commit
        if api:
            siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            content = json.dumps({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})
            return self._send(content.encode(), {"Content-Type": "application/json"}, body=body)
        path = folder / rest[2]
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        return self._send_file(path.read_bytes(), path.name, commit, body=body)

    def _send_file(self, content: bytes, name: str, commit: str, *, body: bool) -> None:
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if body and self.hub.cut.get(name, 0) > 0:
            self.hub.cut[name] -= 1
            self.close_connection = True
            return self._send(content, headers, body=True, cut=len(content) // 2)
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        if body and int(start) > 0:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(content[int(start) :], headers, body=True, status=206)
        return self._send(content, headers, body=body)

    def _send(
        self, content: bytes, headers: dict[str, str], *, body: bool, status: int = 200, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])

    def _refuse(self, status: int, code: str | None, more: dict[str, str] | None = None) -> None:
        headers = {**(more or {}), **({"X-Error-Code": code} if code else {})}
        self._send(b"", headers, body=False, status=status)


@contextmanager
def serve(root: Path) -> Iterator[FakeHub]:
    hub = FakeHub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def connect(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `hub` the one that huggingface_hub talks to, with a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
