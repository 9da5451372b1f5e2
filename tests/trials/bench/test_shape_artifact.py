from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from tokenizers import Tokenizer

from broker_pipeline.artifact_manifest import fingerprint_of, read_manifest
from broker_pipeline.errors import ConfigurationError, RandomWeightsError
from broker_pipeline.model_facts import read_model_facts
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from export.terminal import open_source
from export.verify import verify_artifact
from trials.bench.shape_artifact import write_shape_artifact


def test_the_same_arguments_give_the_same_fingerprint(tmp_path: Path) -> None:
    first, again = (read_manifest(write_shape_artifact(tmp_path / name, "tiny", 3)) for name in ("a", "b"))
    assert first == again
    assert fingerprint_of(first) == first.fingerprint
    others = [
        read_manifest(write_shape_artifact(tmp_path / "c", "tiny", 2)),
        read_manifest(write_shape_artifact(tmp_path / "d", "tiny", 3, seed=1)),
        read_manifest(write_shape_artifact(tmp_path / "e", "tiny", 3, in_fp8=True)),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_it_is_neither_verified_nor_exported(tmp_path: Path) -> None:
    directory = write_shape_artifact(tmp_path, "tiny")
    for refused in (
        lambda: verify_artifact(directory, allow_missing=True, console=Console(quiet=True)),
        lambda: open_source(str(directory)),
    ):
        with pytest.raises(RandomWeightsError, match="for measuring") as caught:
            refused()
        assert caught.value.field == "random_weights"


def test_inspecting_it_says_what_it_is(tmp_path: Path) -> None:
    from export.command import command  # noqa: PLC0415

    result = CliRunner().invoke(command, ["inspect", str(write_shape_artifact(tmp_path, "tiny", seed=7))])
    assert result.exit_code == 0, result.output
    assert "random weights, drawn from seed 7" in " ".join(result.output.split())


@pytest.mark.parametrize("shape", ["tiny", "8B"])
def test_every_id_decodes_to_text_and_text_is_encoded_as_before(tmp_path: Path, shape: str) -> None:
    directory = write_shape_artifact(tmp_path, shape)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    facts = read_model_facts(directory)
    assert tokenizer.get_vocab_size() == facts.vocab_size
    assert tokenizer.decode([facts.vocab_size - 1]) == f" w{facts.vocab_size - 1}"
    text = "<|im_start|>user\n<|image_pad|>Describe this image.<|im_end|>"
    assert tokenizer.encode(text).ids == tiny_tokenizer().encode(text).ids
    assert tokenizer.id_to_token(facts.image_token_id) == "<|image_pad|>"


def test_a_shape_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="9B"):
        write_shape_artifact(tmp_path, "9B")


def test_it_is_made_without_torch(tmp_path: Path) -> None:
    program = "import sys; from trials.bench.shape_artifact import main; main('tiny', sys.argv[1], '2'); "
    program += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False)
    assert done.returncode == 0
