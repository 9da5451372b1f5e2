from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from broker_pipeline.errors import CheckpointError, HubError
from broker_pipeline.exit_codes import INTERRUPTED
from export.command import command
from tests.kit.models.random_checkpoints import write_random_checkpoint


@pytest.fixture
def source(tmp_path) -> Path:
    return write_random_checkpoint(tmp_path / "source", moe=True, tied=False, num_layers=3, dtype=torch.bfloat16)


def invoke(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker_pipeline", "export", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_export_verify_and_inspect(source, tmp_path):
    exported = invoke(source, tmp_path / "target")
    assert exported.exit_code == 0
    fingerprint = json.loads((tmp_path / "target" / "weights_manifest.json").read_text())["fingerprint"]
    assert f"fingerprint {fingerprint}" in exported.stdout
    assert "1/6 wrote" in exported.stderr
    verified = invoke("verify", tmp_path / "target")
    assert "is whole: 12 files" in verified.stdout
    assert fingerprint in verified.stdout
    inspected = invoke("inspect", tmp_path / "target", "--stages", "3")
    assert fingerprint in inspected.stdout
    assert "qwen3_vl_moe" in inspected.stdout
    for blocks in ("0:1", "1:2", "2:3"):
        assert blocks in inspected.stdout


def test_fp8_is_said(source, tmp_path):
    assert invoke("--quantize", "fp8", source, tmp_path / "target").exit_code == 0
    assert "FP8 matrices" in invoke("inspect", tmp_path / "target").stdout
    assert "is whole" in invoke("verify", tmp_path / "target").stdout
    codes = load_file(tmp_path / "target" / "block-00001.safetensors")
    assert codes["model.language_model.layers.1.mlp.experts.down_proj"].dtype == torch.float8_e4m3fn


def test_options_may_come_first(source, tmp_path):
    assert invoke("--dtype", "float32", "--workers", 1, source, tmp_path / "target").exit_code == 0
    assert load_file(tmp_path / "target" / "head.safetensors")["lm_head.weight"].dtype == torch.float32


def test_a_source_called_like_a_subcommand(source, tmp_path, monkeypatch):
    source.rename(tmp_path / "verify")
    monkeypatch.chdir(tmp_path)
    assert invoke("./verify", "target").exit_code == 0
    assert (tmp_path / "target" / "weights_manifest.json").exists()


def test_help_teaches_the_common_use():
    help_text = invoke("--help").stdout
    assert "[OPTIONS] SOURCE TARGET" in help_text
    assert "--expert-layout" in help_text
    assert "verify   Read every byte" in help_text


def test_more_stages_than_blocks(source, tmp_path):
    invoke(source, tmp_path / "target")
    inspected = invoke("inspect", tmp_path / "target", "--stages", "4")
    assert inspected.exit_code == 2
    assert "the model has 3 blocks" in inspected.stderr


def test_a_missing_tokenizer_is_refused_in_a_sentence(source, tmp_path):
    (source / "tokenizer.json").unlink()
    result = run(source, tmp_path / "target")
    assert result.returncode == 78
    assert result.stderr.startswith("error: the checkpoint could not be served:")
    assert "Copy tokenizer.json and tokenizer_config.json from the model that this one was made from" in result.stderr
    assert not (tmp_path / "target.partial").exists()


def test_errors_are_sentences_and_exit_codes(source, tmp_path):
    (source / "model.safetensors").write_bytes(b"short")
    result = run(source, tmp_path / "target")
    assert result.returncode not in {0, 1}
    assert result.stderr.startswith("error: ")
    assert "not a whole safetensors file" in result.stderr
    assert "Traceback" not in result.stderr
    with pytest.raises(CheckpointError):
        invoke(source, tmp_path / "target")


@pytest.mark.parametrize("text", ["no/such/directory", "nothing", "a/b@"])
def test_a_source_that_is_nothing(tmp_path, text):
    with pytest.raises(HubError, match="neither a directory on this host nor a repository"):
        invoke(text, tmp_path / "target")


def test_an_unpinned_repository_needs_a_revision(tmp_path):
    with pytest.raises(HubError, match="someone/their-model@COMMIT"):
        invoke("someone/their-model", tmp_path / "target")


def test_an_unreachable_hub_is_said_in_a_sentence(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = run("Qwen/Qwen3-VL-2B-Instruct", tmp_path / "target", env=environment)
    assert "the hub could not be reached for Qwen/Qwen3-VL-2B-Instruct@89644892" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode not in {0, 1}
    assert not (tmp_path / "target.partial").exists()


def test_control_c_says_how_to_go_on(tmp_path):
    source = write_random_checkpoint(tmp_path / "many", num_layers=120, dtype=torch.bfloat16)
    process = subprocess.Popen(
        # Behind this test, which has to read what it says before all is done.
        ["nice", "-n", "19", sys.executable, "-m", "broker_pipeline", "export", str(source), str(tmp_path / "target")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("3/"):
                process.send_signal(signal.SIGINT)
    text = "".join(lines)
    assert process.returncode == INTERRUPTED
    assert "the same command goes on from there" in " ".join(text.split())
    assert "Traceback" not in text
    assert not (tmp_path / "target").exists()


def test_a_terminal_gets_a_bar_instead_of_lines(source, tmp_path):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "broker_pipeline", "export", str(source), str(tmp_path / "target")],
        stdout=subprocess.DEVNULL,
        stderr=child,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    screen = b""
    try:
        while chunk := os.read(parent, 4096):
            screen += chunk
    except OSError:  # the terminal's other end is gone
        pass
    os.close(parent)
    assert process.wait(60) == 0
    assert b"exporting 6/6" in screen
    assert b"wrote block" not in screen
