"""Reads questions out of flags.

--prompt 'weight=3: Describe the picture.' --prompt 'Caption this picture.'    three times in four the first
--prompt-file wordings.txt                                                     the same, `---` lines between them
--ask 'short=Shorten to ten words: {{ caption }}'                              a further question, by its name
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.captioning.prompts.presets import preset
from broker_pipeline.captioning.prompts.question import Question, Questions
from broker_pipeline.captioning.prompts.template import Template
from broker_pipeline.captioning.prompts.text_file import read_text
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from broker_pipeline.messages.jobs import DEFAULT_PROMPT
from broker_pipeline.process.terminal import printable

MAIN_QUESTION = "caption"
_WEIGHT = re.compile(r"weight=([0-9]{1,6}(?:\.[0-9]{1,6})?):\s*(.*)", re.DOTALL)
_SEPARATOR = re.compile(r"^---[ \t]*$", re.MULTILINE)

Wording = tuple[float, Template]


@dataclass(frozen=True, slots=True)
class PromptFlags:
    """The flags' texts as they were typed."""

    prompts: tuple[str, ...] = ()
    prompt_files: tuple[tuple[str, str], ...] = ()
    """Each file's name and text."""
    preset: str | None = None
    asks: tuple[str, ...] = ()
    system: str | None = None
    folder_prompts: bool = False


def read_prompt_file(path: Path) -> tuple[str, str]:
    """Return a file's name and text, as `PromptFlags` has them; raises `ConfigurationError`."""
    name = printable(path)
    try:
        text = read_text(path)
    except InvalidRequestError as error:
        raise ConfigurationError(f"--prompt-file: {error.message}", field="prompt_file") from error
    if text is None:
        raise ConfigurationError(f"--prompt-file: {name} does not exist", field="prompt_file")
    return name, text


def questions_of(flags: PromptFlags) -> Questions | None:
    """Return what the flags ask for, None where they say nothing; raises `ConfigurationError`, which names the flag."""
    wordings = tuple(_wordings(flags))
    if not wordings and not flags.asks and not flags.system and not flags.folder_prompts:
        return None
    system = None if flags.system is None else Template(flags.system, "--system")
    if not wordings and (flags.folder_prompts or not flags.asks):
        wordings = ((1.0, Template(DEFAULT_PROMPT, "the prompt")),)
    main = (Question(MAIN_QUESTION, wordings, system, flags.folder_prompts),) if wordings else ()
    return Questions((*main, *(_asked(text, system) for text in flags.asks)))


def _wordings(flags: PromptFlags) -> Iterator[Wording]:
    if flags.preset is not None:
        if flags.prompts or flags.prompt_files:
            raise ConfigurationError("--preset takes no --prompt and no --prompt-file beside it", field="preset")
        yield 1.0, preset(flags.preset)
    for text in flags.prompts:
        yield _wording(text, "--prompt")
    for name, content in flags.prompt_files:
        for number, text in enumerate(_SEPARATOR.split(content), 1):
            yield _wording(text.strip(), f"--prompt-file {name}, prompt {number}")


def _wording(text: str, where: str) -> Wording:
    if not text.startswith("weight="):
        return 1.0, Template(text, where)
    found = _WEIGHT.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise ConfigurationError(f"{where}: a weight is a number above 0, as in `weight=3: TEXT`", field="prompt")
    return float(found[1]), Template(found[2], where)


def _asked(text: str, system: Template | None) -> Question:
    name, separator, prompt = text.partition("=")
    if not separator:
        raise ConfigurationError(f"--ask {printable(text)!r}: say NAME=TEXT", field="ask")
    name = name.strip()
    return Question(name, ((1.0, Template(prompt, f"--ask {printable(name)}")),), system)
