"""A hub id instead of a folder: downloaded from a server here that answers as the hub does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

# Each line in: the options of a model. Each line out: its weight files, or the error.
LOCATE = """
import json, sys
from mindbooth.trainer.config import ConfigError, ModelConfig
from mindbooth.trainer.sdxl import WEIGHTS, locate
for line in sys.stdin:
    try:
        model = locate(ModelConfig(**json.loads(line)))
        print(*(path.name for part in WEIGHTS for path in model.weights(part)))
    except ConfigError as err:
        print(f"ConfigError: {err}")
"""
TINY = {"pretrained_model_name_or_path": "someone/tiny"}
ASKED = {
    "plain": TINY,
    "variant, revision, separate VAE": TINY
    | {"variant": "fp16", "revision": "v2"}
    | {"pretrained_vae_model_name_or_path": "someone/better-vae"},
    "no such model": {"pretrained_model_name_or_path": "someone/nothing"},
    "no such revision": TINY | {"revision": "v9"},
    "no such variant": TINY | {"variant": "bf16"},
}


@dataclass
class Hub:
    """Repositories by id: each a folder; revisions by name; and what was asked for."""

    repositories: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.repositories:
            folder = self.repositories["/".join(parts[2:4])]
            revision = parts[5] if len(parts) > 5 else "main"
            if revision not in ("main", "v2"):
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
            files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            about = {
                "id": "/".join(parts[2:4]),
                "sha": hashlib.sha1(revision.encode()).hexdigest(),
                "siblings": [{"rfilename": name} for name in sorted(files)],
            }
            return 200, json.dumps(about).encode(), {"Content-Type": "application/json"}
        if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in self.repositories:
            content = (self.repositories["/".join(parts[:2])] / "/".join(parts[4:])).read_bytes()
            return 200, content, {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": parts[3],
            }  # fmt: skip
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    model = folder / "tiny"
    shutil.copytree(tiny_pipeline, model)
    for weights in list(model.rglob("*.safetensors")):
        shutil.copy(weights, weights.with_name(f"{weights.stem}.fp16.safetensors"))
    (model / "unet" / "model.onnx").write_bytes(b"not for us")
    vae = folder / "vae"
    shutil.copytree(tiny_pipeline / "vae", vae)
    served = Hub(repositories={"someone/tiny": model, "someone/better-vae": vae})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - named by http.server
            status, content, headers = served.answer(urlparse(self.path).path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def located(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each of ASKED, all asked by one process."""
    environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOCATE],
        input="".join(json.dumps(options) + "\n" for options in ASKED.values()),
        env=environ | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, done.stdout.splitlines(), strict=True))


def test_a_hub_id_brings_the_plain_weights(located: dict[str, str]) -> None:
    assert len(located["plain"].split()) == 4
    assert "fp16" not in located["plain"]


def test_a_variant_a_revision_and_a_separate_vae(hub: Hub, located: dict[str, str]) -> None:
    names = located["variant, revision, separate VAE"].split()
    assert [name.count(".fp16.") for name in names] == [1, 0, 1, 1], "the separate VAE has none"
    assert any("/revision/v2" in path for path in hub.asked)


def test_other_programs_files_stay_on_the_hub(hub: Hub, located: dict[str, str]) -> None:
    taken = [path for path in hub.asked if "/resolve/" in path]
    assert taken
    assert not [path for path in taken if path.endswith(".onnx")]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no such model", "someone/nothing"),
        ("no such revision", "someone/tiny"),
        ("no such variant", "*.bf16.safetensors"),
    ],
)
def test_what_the_hub_lacks_is_told_in_one_line(
    located: dict[str, str], case: str, told: str
) -> None:
    assert located[case].startswith("ConfigError: ")
    assert told in located[case]
