"""A Hugging Face Hub without a network: repositories of files behind the client's own HTTP layer."""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

# The client's HTTP library was renamed between releases; its own error class says which one it uses.
http: Any = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


class FakeHub:
    """Serves `repos` {name: folder} at one commit; others answer with their `status`, 404 if none is given."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.status: dict[str, int] = {}
        self.codes = {404: "RepoNotFound", 403: "GatedRepo"}  # a proxy sends none
        self.online = True
        self.asked: list[str] = []
        self.sent: list[str] = []

    def handle(self, request: Any) -> Any:
        path = request.url.path
        self.asked.append(path)
        if not self.online:
            raise http.ConnectError("no route to host", request=request)
        repo = re.match(r"(?:/api/models)?/([^/]+/[^/]+)", path)[1]
        if repo not in self.repos:
            status = self.status.get(repo, 404)
            code = self.codes.get(status)
            return http.Response(status, headers={"X-Error-Code": code} if code else {}, request=request)
        files = sorted(p.relative_to(self.repos[repo]).as_posix() for p in self.repos[repo].rglob("*") if p.is_file())
        if path.startswith("/api/models/"):
            return http.Response(200, json=self._listing(path, files, repo), request=request)
        return self._file(request, repo, path.split("/", 5)[-1], files)

    def _listing(self, path: str, files: list[str], repo: str) -> Any:
        if "/tree/" in path:
            sizes = {file: (self.repos[repo] / file).stat().st_size for file in files}
            return [{"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in sizes.items()]
        return {"id": repo, "sha": self.commit, "siblings": [{"rfilename": file} for file in files]}

    def _file(self, request: Any, repo: str, name: str, files: list[str]) -> Any:
        headers = {"X-Repo-Commit": self.commit}
        if name not in files:
            return http.Response(404, headers=headers | {"X-Error-Code": "EntryNotFound"}, request=request)
        data = (self.repos[repo] / name).read_bytes()
        headers |= {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Content-Length": str(len(data))}
        if request.method == "HEAD":
            return http.Response(200, headers=headers, request=request)
        self.sent.append(name)
        return http.Response(200, headers=headers, content=data, request=request)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The fake Hub in place of the real one, and an empty cache: pass `cache_dir=hub.cache`."""
    fake = FakeHub()
    fake.cache = tmp_path / "cache"
    huggingface_hub.set_client_factory(lambda: http.Client(transport=http.MockTransport(fake.handle)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its retries
    yield fake
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)
