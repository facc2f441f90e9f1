"""A server on loopback that answers as the Hugging Face hub does: downloads, and uploads.

Repositories are folders, so that a test can compare the bytes. What huggingface_hub asks for:

    GET  /api/models/ID[/revision/R]            which files there are
    GET  /ID/resolve/COMMIT/FILE                a file
    POST /api/repos/create                      409 if it is there; 403 without the right to write
    POST /api/validate-yaml                     400 if base_model is no id
    POST /api/models/ID/preupload/main          which files go as LFS: all but text
    POST /ID.git/info/lfs/objects/batch         where to put those
    PUT  /lfs/DIGEST                            one of them
    POST /api/models/ID/commit/main             a line a file; what goes not as LFS is in it
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

Answer = tuple[int, bytes, dict[str, str]]


@dataclass
class Hub:
    """Repositories by id: each a folder; and what was asked for.

    tokens: whose each is; another's repositories can be read with it, not written. cut: with this
    token, the connection is closed without an answer as soon as such a path is asked for.
    """

    repositories: dict[str, Path]
    root: Path | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    cut: dict[str, str] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, user: str | None) -> Answer:
        self.asked.append(path)
        if method == "PUT":
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, b"", {}
        if method == "POST":
            return self._post(path, body, user)
        return self._get(path)

    def _get(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.repositories:
            folder = self.repositories["/".join(parts[2:4])]
            revision = parts[5] if len(parts) > 5 else "main"
            if revision not in ("main", "v2"):
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
            files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            return _json(
                200,
                {
                    "id": "/".join(parts[2:4]),
                    "sha": hashlib.sha1(revision.encode()).hexdigest(),
                    "siblings": [{"rfilename": name} for name in sorted(files)],
                },
            )
        if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in self.repositories:
            content = (self.repositories["/".join(parts[:2])] / "/".join(parts[4:])).read_bytes()
            return 200, content, {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": parts[3],
            }  # fmt: skip
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}

    def _post(self, path: str, body: bytes, user: str | None) -> Answer:
        if user is None:
            return _json(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return _validated(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body), user)
        found = re.fullmatch(
            r"/(?:api/models/)?(\w[^/]*/[^/]+?)(?:\.git)?/(?:info/)?(\w+)/.*", path
        )
        assert found, path
        name, action = found.groups()
        if name.split("/")[0] != user:
            return _json(403, {"error": f"You don't have the right to write to {name}."})
        answers = {"preupload": self._preupload, "lfs": self._batch, "commit": self._commit}
        return answers[action](name, body)

    def _create(self, asked: dict[str, Any], user: str) -> Answer:
        owner = asked["organization"] or user
        name = f"{owner}/{asked['name']}"
        told = {"url": f"{self.url}/{name}", "name": name}
        if owner != user:
            return _json(403, {"error": "You don't have the rights to create a model there."})
        if name in self.repositories:
            return _json(409, told)
        assert self.root is not None
        self.repositories[name] = self.root / name
        (self.root / name).mkdir(parents=True)
        return _json(200, told)

    def _preupload(self, _: str, body: bytes) -> Answer:
        files = [
            {
                "path": file["path"],
                "uploadMode": "regular" if file["path"].endswith((".md", ".yaml")) else "lfs",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return _json(200, {"files": files})

    def _batch(self, _: str, body: bytes) -> Answer:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}}}
            for asked in json.loads(body)["objects"]
        ]
        return _json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> Answer:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                continue
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            else:
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            path = self.repositories[name] / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return _json(200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40})


def _validated(card: str) -> Answer:
    """The hub refuses a card whose base_model is a path."""
    base_model = yaml.safe_load(card.split("---\n")[1]).get("base_model", "an/id")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model):
        return _json(200, {"errors": [], "warnings": []})
    message = f'"base_model" with value "{base_model}" is not valid.'
    return _json(400, {"errors": [{"message": message}], "warnings": []})


def _json(status: int, told: object) -> Answer:
    return status, json.dumps(told).encode(), {"Content-Type": "application/json"}


@contextmanager
def serving(hub: Hub) -> Iterator[None]:
    """`hub.url` leads to it inside."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - named by http.server
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlparse(self.path).path
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token in hub.cut and hub.cut[token] in path:
                self.close_connection = True
                return
            status, content, headers = hub.answer(self.command, path, body, hub.tokens.get(token))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def environ(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """What makes huggingface_hub ask it, and know no token but what is given here."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "", "no_proxy": "*", **more}
