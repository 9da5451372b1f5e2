"""Data sets of the hub, by its own client and a server that answers as the hub does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.broker_pipeline.captioning.sources.test_tar import write_tar

COMMIT = "1" * 40
_REPO = "org/name"
_SCRIPT = """
import json, sys
from broker_pipeline.captioning.sources.open import open_source
from broker_pipeline.errors import PipelineError
for url in sys.argv[1:]:
    try:
        source = open_source(url)
        items = []
        for item in source:
            try:
                items.append([item.id, item.read().decode()])
            except PipelineError as error:
                items.append([item.id, error.message])
        print(json.dumps([source.name, items]))
    except PipelineError as error:
        print(json.dumps([error.code, error.message]))
"""


class Handler(BaseHTTPRequestHandler):
    files: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = json.loads(asked)["paths"] if asked.startswith("{") else re.findall(r"paths=([^&]*)", unquote(asked))
        self._json([entry for name in names for entry in self._entries() if entry["path"] == name])

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith(f"/datasets/{_REPO}/resolve/{COMMIT}/"):
            self._file(self.files / path.split("/", 6)[6])
        elif re.match(rf"/api/datasets/{_REPO}/tree/{COMMIT}(/|$)", path):
            self._json(self._entries())
        elif re.fullmatch(rf"/api/datasets/{_REPO}(/revision/({COMMIT}|main))?", path):
            self._json({"_id": "1", "id": _REPO, "sha": COMMIT, "siblings": []})
        else:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "RepoNotFound"})

    def _entries(self) -> list[dict[str, object]]:
        files = [path for path in self.files.rglob("*") if path.is_file()]
        folders = {path.parent for path in files} - {self.files}
        found: list[dict[str, object]] = [
            {"type": "directory", "path": path.relative_to(self.files).as_posix(), "oid": "a" * 40, "size": 0}
            for path in folders
        ]
        return found + [
            {
                "type": "file",
                "path": path.relative_to(self.files).as_posix(),
                "oid": "b" * 40,
                "size": path.stat().st_size,
            }
            for path in files
        ]

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._reply(200, content, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._reply(206, content[start : end + 1], headers)

    def _json(self, value: object) -> None:
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    files = tmp_path / "hub"
    (files / "data").mkdir(parents=True)
    (files / "pics").mkdir()
    rows = [{"image": b"row 0", "n": 0}, {"image": b"row 1", "n": 1}]
    parquet.write_table(pa.Table.from_pylist(rows), files / "data" / "train.parquet")
    paths = ["../pics/p.png", "file:///etc/hostname", "/etc/hostname"]
    parquet.write_table(pa.table({"path": paths}), files / "data" / "zpaths.parquet")
    write_tar(files / "data" / "a.tar", [("k.jpg", b"in a tar")])
    (files / "pics" / "p.png").write_bytes(b"a picture")
    (files / "README.md").write_text("read me")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Handler,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_of_the_hub_is_read_at_one_commit(hub: str, tmp_path: Path) -> None:
    pinned = f"hf://datasets/org/name@{COMMIT}"
    urls = ["hf://datasets/org/name", f"{pinned}/pics", f"{pinned}/data/a.tar", "hf://datasets/org/none"]
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *urls], env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    whole, folder, tar, none = map(json.loads, done.stdout.splitlines())
    refused = "is not below the folder of the table, which came from elsewhere"
    assert whole[0] == pinned
    assert whole[1] == [
        [f"{pinned}/data/a.tar::k", "in a tar"],
        [f"{pinned}/data/train.parquet#0", "row 0"],
        [f"{pinned}/data/train.parquet#1", "row 1"],
        [f"{pinned}/data/zpaths.parquet#0", f"column path: ../pics/p.png {refused}"],
        [f"{pinned}/data/zpaths.parquet#1", f"column path: file:///etc/hostname {refused}"],
        [f"{pinned}/data/zpaths.parquet#2", f"column path: /etc/hostname {refused}"],
        [f"{pinned}/pics/p.png", "a picture"],
    ]
    assert folder[1] == [[f"{pinned}/pics/p.png", "a picture"]]
    assert tar[1] == [[f"{pinned}/data/a.tar::k", "in a tar"]]
    assert none[0] == "configuration"
    assert none[1].startswith("cannot list hf://datasets/org/none: ")
