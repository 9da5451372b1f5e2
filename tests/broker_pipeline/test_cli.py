"""The command line as a person meets it, in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline import exit_codes
from broker_pipeline.cli import COMMANDS, cli


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker_pipeline", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name: str) -> None:
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage: " in done.stdout
    assert len(done.stdout.splitlines()) > 6


def test_every_command_is_declared_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
    code += "from broker_pipeline.cli import known_variables; print(len(known_variables()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_misspelt_variable_is_an_error() -> None:
    done = run("status", BROKER_PIPELINE_NATS_ULR="nats://x")
    assert done.returncode == 2
    assert "did you mean BROKER_PIPELINE_NATS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_variable_of_the_command_imports_no_other() -> None:
    code = "import atexit, sys\nfrom broker_pipeline import cli\n"
    code += "atexit.register(lambda: print(*(name for name in sys.modules if name.startswith('trials'))))\ncli.main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_PIPELINE_")}
    done = subprocess.run(
        [sys.executable, "-c", code, "status"], capture_output=True, text=True, timeout=60, check=False,
        env=environment | {"BROKER_PIPELINE_GATEWAY": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (exit_codes.UNAVAILABLE, "\n")


@pytest.mark.parametrize("name", ["up", "stage"])  # itself, and another one whose variables may be given
def test_ctrl_c_while_a_command_is_loaded_leaves_no_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "slow_to_load.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    code = f"from broker_pipeline import cli\ncli.COMMANDS[{name!r}] = 'slow_to_load:command'\ncli.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "up"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "BROKER_PIPELINE_X": "y"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == exit_codes.INTERRUPTED
    assert done.stderr == ""
