"""Whatever value of whatever flag is wrong, one line names the flag, and nothing is begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from broker_pipeline.captioning.line_maker import by_flag
from broker_pipeline.cli import COMMANDS, describe, main
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ConfigurationError, Failure
from broker_pipeline.lazy_group import load_command
from broker_pipeline.messages.sampling import SamplingParams
from tests.kit.wrong_values import field_types, texts_of, wrong_values


def parameters() -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Every option and argument of every command, with the words that lead to it."""
    for name, place in COMMANDS.items():
        yield from _parameters_of((name,), load_command(place))


def options() -> Iterator[tuple[tuple[str, ...], click.Option]]:
    """Every option of every command, with the words that lead to it."""
    yield from ((words, option) for words, option in parameters() if isinstance(option, click.Option))


def _parameters_of(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    yield from ((words, parameter) for parameter in command.params)
    if isinstance(command, click.Group):
        for child in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), child)
            assert found is not None
            yield from _parameters_of((*words, child), found)


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command line says of wrong arguments."""
    monkeypatch.setattr("sys.argv", ["broker-pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2, arguments
    return capsys.readouterr().err.strip().splitlines()[-1]


NUMBERS = [
    (words, option)
    for words, option in options()
    if not isinstance(option.type, click.types.StringParamType | click.Path | click.types.BoolParamType)
    and option.name != "help"
]


def test_the_commands_have_such_flags() -> None:
    assert len(NUMBERS) > 100


@pytest.mark.parametrize(
    ("words", "option"), NUMBERS, ids=[" ".join((*words, option.opts[0])) for words, option in NUMBERS]
)
def test_what_is_no_value_of_a_flag(
    words: tuple[str, ...],
    option: click.Option,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_real = isinstance(option.type, click.types.FloatParamType)
    for value in ("no such value", "nan") if is_real else ("no such value",):
        said = refusal(monkeypatch, capsys, *words, option.opts[0], *[value] * option.nargs)
        assert f"'{option.opts[0]}'" in said, said


def sampling_flags() -> Iterator[tuple[str, Any]]:
    command = load_command(COMMANDS["caption"])
    names = {option.name for option in command.params}
    for name, kind in field_types(SamplingParams).items():
        if name in names:
            for value in wrong_values(kind):
                yield name, value


def test_values_of_caption_that_no_api_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    num_tried = 0
    for name, value in sampling_flags():
        texts = texts_of(value)
        if name in {"bad_words", "stop"} and texts[0].startswith("[["):
            continue  # a word like any other
        flag = "--" + name.replace("_", "-")
        said = refusal(monkeypatch, capsys, "caption", str(tmp_path), *(f"{flag}={text}" for text in texts))
        assert flag in said
        assert "$" not in said
        num_tried += 1
    assert num_tried > 40


PATHS = [
    (words, parameter)
    for words, parameter in parameters()
    if isinstance(parameter.type, click.Path) or parameter.name == "source"
]


@pytest.mark.parametrize(
    ("words", "parameter"), PATHS, ids=[" ".join((*words, str(parameter.name))) for words, parameter in PATHS]
)
def test_an_empty_path_is_refused_by_its_name(
    words: tuple[str, ...],
    parameter: click.Parameter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = (
        parameter.opts[:1] if isinstance(parameter, click.Option) else ["source"] * (parameter.name in {"target", "to"})
    )
    said = refusal(monkeypatch, capsys, *words, *flags, "")
    named = flags[0] if isinstance(parameter, click.Option) else (parameter.metavar or str(parameter.name)).upper()
    assert named in said
    assert "the path is empty" in said


def test_flags_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    said = refusal(monkeypatch, capsys, "caption", str(tmp_path), "--min-tokens", "9", "--max-tokens", "8")
    assert said == "error: --min-tokens: larger than --max-tokens"


@pytest.mark.parametrize("command", ["gateway", "vision", "stage", "conductor"])
@pytest.mark.parametrize("flag", ["--namespace", "--pipeline"])
def test_names_that_no_service_may_have(
    command: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needed = {"gateway": (), "stage": ("--model", str(tmp_path), "--blocks", "0:")}.get(
        command, ("--model", str(tmp_path))
    )
    said = refusal(monkeypatch, capsys, command, *needed, flag, "no such name")
    assert said.startswith(f"error: {flag}: ")


def test_common_settings_and_their_flags_have_the_same_names() -> None:
    names = {option.name for option in load_command(COMMANDS["gateway"]).params}
    assert set(CommonSettings.__struct_fields__) <= names


def test_an_error_found_later_names_its_flag_too() -> None:
    assert describe(ConfigurationError("port 1 is taken", field="metrics_port")) == "--metrics-port: port 1 is taken"
    assert describe(ConfigurationError("--out: no room", field="out")) == "--out: no room"
    assert describe(ConfigurationError("a.jpg does not exist", field="PATHS")) == "a.jpg does not exist"


def test_a_field_that_a_gateway_names_is_a_flag_to_caption() -> None:
    named = {
        "request.sampling.top_k": "--top-k",
        "sampling.max_tokens": "--max-tokens",
        "request.prompt": "--prompt",
        "image[0]": "image[0]",
        None: None,
    }
    for field, flag in named.items():
        assert by_flag(Failure("invalid_request", "why", field)).field == flag


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("stage --blocks 0:1 --model . --max-pictures 2", "--max-pictures is for a vision worker: add --vision"),
        ("stage --blocks 0:1 --model . --kv-tokens 512 --kv-share 0.5", "--kv-share has no effect with --kv-tokens"),
        ("stage --blocks 0:1 --model . --edges nats --edge-port 7400", "--edge-port has no effect with --edges nats"),
        ("vision --model . --edges shm --edge-tls off", "--edge-tls has no effect with --edges shm"),
        ("up --model . --edges tcp --edge-ring-bytes 65536", "--edge-ring-bytes has no effect with --edges tcp"),
        ("up --model . --nats-replicas 3", "--nats-replicas is for a cluster: give its --nats-url"),
        ("bench pipeline --layout copies=2 --stages 3", "--stages has no effect with --layout"),
        ("bench pipeline --no-in-process --in-process-threads 2", "--in-process-threads has no effect"),
        ("bench pipeline --mps", "--mps is for GPUs"),
        ("bench transformers --layers 2", "--layers takes layers of a shape"),
        ("bench stage --fp8-product kernel", "--fp8-product is for FP8"),
        ("bench gateway --bulk --stream", "--stream has no effect with --bulk"),
        ("bench edges --nats-url nats://h --answer --kib 8", "--kib is for the run with --elsewhere"),
        ("bench edges --nats-url nats://h --elsewhere --way shm", "--way shm stays on one host"),
    ],
)
def test_a_flag_that_another_one_leaves_without_effect_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    assert said in refusal(monkeypatch, capsys, *arguments.split())
