"""Exports from a server that answers as the hub's does, through the hub's own client. The hub itself is not asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from broker_pipeline.errors import PipelineError
from broker_pipeline.exit_codes import exit_code_of
from export.command import command
from tests.kit.models.random_checkpoints import write_random_checkpoint

REPO = "Qwen/Qwen3-VL-2B-Instruct"
COMMIT = "89644892e4d85e24eaac8bacfd4f463576704203"
NUM_SHARDS = 6


class HubServer(ThreadingHTTPServer):
    """Serves one repository at one commit; counts whole downloads and how many shards the client keeps meanwhile."""

    daemon_threads = True

    def __init__(self, files: Path, staging: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.staging = staging
        self.downloads: Counter[str] = Counter()
        self.most_staged = 0
        self.failing: set[str] = set()


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/{REPO}/revision/(.+)", path):
            self.describe(match[1])
        elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/([\w.-]+)", path):
            self.serve(match[1], with_body=with_body)
        else:
            self.refuse("RepoNotFound")

    def describe(self, revision: str) -> None:
        if revision not in {COMMIT, "main"}:
            self.refuse("RevisionNotFound")
            return
        siblings = [{"rfilename": p.name, "size": p.stat().st_size} for p in self.server.files.iterdir()]
        body = json.dumps({"_id": "1", "id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
        self.reply(200, body, {"Content-Type": "application/json"})

    def serve(self, name: str, *, with_body: bool) -> None:
        path = self.server.files / name
        if not path.is_file():
            self.refuse("EntryNotFound")
            return
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if with_body and name in self.server.failing and not requested:
            self.close_connection = True  # the network goes away
            return
        if requested is None:
            if with_body:
                self.count(name)
            self.reply(200, content, headers, with_body=with_body)
            return
        part = content[int(requested[1]) : int(requested[2] or len(content)) + 1]
        headers["Content-Range"] = f"bytes {requested[1]}-{int(requested[1]) + len(part) - 1}/{len(content)}"
        self.reply(206, part, headers, with_body=with_body)

    def count(self, name: str) -> None:
        self.server.downloads[name] += 1
        staged = len(list(self.server.staging.glob("*.safetensors")))
        self.server.most_staged = max(self.server.most_staged, staged + 1)

    def refuse(self, code: str) -> None:
        self.reply(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def reply(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint in shards, in the order of its layers as the hub's are."""
    source = write_random_checkpoint(tmp_path / "hub-files", num_layers=12, dtype=torch.bfloat16)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()

    def layer(name: str) -> int:
        match = re.search(r"language_model\.layers\.(\d+)\.", name)
        return int(match[1]) if match else -1

    weight_map = {}
    for number in range(NUM_SHARDS):
        file = f"model-{number + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        part = {name: tensor for name, tensor in weights.items() if max(layer(name), 0) // 2 == number}
        save_file(part, source / file)
        weight_map |= dict.fromkeys(part, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return source


@pytest.fixture
def hub(checkpoint, tmp_path) -> Iterator[HubServer]:
    server = HubServer(checkpoint, tmp_path / "target.partial" / "download")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def export(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, str]]:
    """Export a reference from the server, in this process; return the exit code and what is said."""
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.server_address[1]}")
    monkeypatch.setattr("export.source.hub._hub_api", lambda: api)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def run(reference: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, [reference, str(tmp_path / "target"), "--workers", "1"])
        if isinstance(result.exception, PipelineError):
            return exit_code_of(result.exception), result.exception.message
        assert result.exception is None, result.output
        return result.exit_code, result.output

    return run


def manifest_of(directory: Path) -> dict:
    return json.loads((directory / "weights_manifest.json").read_text())


def test_a_pinned_repository_is_fetched_shard_by_shard(hub, export, checkpoint, tmp_path, run_export):
    code, said = export(REPO)
    assert code == 0, said
    manifest = manifest_of(tmp_path / "target")
    assert manifest["source"] == f"{REPO}@{COMMIT}"
    local = run_export(checkpoint, tmp_path / "local").manifest
    assert manifest["fingerprint"] == local.fingerprint
    shards = {name: count for name, count in hub.downloads.items() if name.endswith(".safetensors")}
    assert len(shards) == NUM_SHARDS
    assert set(shards.values()) == {1}
    # the first shard holds the head as well and stays to the end: it and the one in use
    assert hub.most_staged <= 2
    assert not (tmp_path / "target.partial").exists()
    hub.downloads.clear()
    _, again = export(f"{REPO}@main")  # the branch is at the same commit
    assert "already is this artifact" in again
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


@pytest.mark.slow  # the client tries again for ten seconds by itself
def test_a_broken_download_goes_on_where_it_was(hub, export, tmp_path):
    hub.failing = {f"model-00004-of-{NUM_SHARDS:05d}.safetensors"}
    code, broken = export(REPO)
    assert code not in {0, 1}
    assert "the hub could not be reached" in broken
    assert not (tmp_path / "target").exists()
    hub.failing = set()
    hub.downloads.clear()
    code, resumed = export(REPO)
    assert code == 0, resumed
    assert "kept from an earlier run" in resumed
    assert hub.downloads[f"model-00002-of-{NUM_SHARDS:05d}.safetensors"] == 0
    assert hub.downloads[f"model-00004-of-{NUM_SHARDS:05d}.safetensors"] == 1


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"{REPO}@0000000000000000000000000000000000000000", "the hub has no such revision"),
        ("Qwen/Qwen3-VL-4B-Instruct", "the hub has no repository"),
    ],
)
def test_what_the_hub_does_not_have(export, tmp_path, reference, said):
    assert said in export(reference)[1]
    assert not (tmp_path / "target.partial").exists()


def test_a_wrong_checkpoint_is_refused_before_its_weights_are_fetched(hub, export, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 13
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "missing (11):" in export(REPO)[1]
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


@pytest.mark.parametrize(
    ("added", "removed", "said"),
    [
        ("adapter_config.json", "config.json", "this is a LoRA adapter"),
        ("pytorch_model.bin", "*.safetensors*", "the weights are in pickled files (pytorch_model.bin)"),
        ("notes.txt", "tokenizer.json", "no tokenizer.json, nor vocab.json and merges.txt"),
        ("notes.txt", "preprocessor_config.json", "nothing says how pictures are resized"),
    ],
)
def test_a_repository_that_could_not_be_served_is_refused_before_its_weights_are_fetched(
    hub, export, checkpoint, tmp_path, added, removed, said
):
    for path in checkpoint.glob(removed):
        path.unlink()
    (checkpoint / added).write_text("{}")
    code, refused = export(REPO)
    assert said in refused
    assert code == 78
    assert not any(name.endswith(".safetensors") for name in hub.downloads)
    assert not (tmp_path / "target.partial").exists()


def test_shards_of_the_hub_need_no_index(export, checkpoint, tmp_path, run_export):
    whole = run_export(checkpoint, tmp_path / "local").manifest.fingerprint
    (checkpoint / "model.safetensors.index.json").unlink()
    code, said = export(REPO)
    assert code == 0, said
    assert manifest_of(tmp_path / "target")["fingerprint"] == whole
