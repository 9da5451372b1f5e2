"""From flags to questions."""

from pathlib import Path

import pytest

from broker_pipeline.captioning.prompts.parse import PromptFlags, questions_of, read_prompt_file
from broker_pipeline.captioning.prompts.presets import preset, presets
from broker_pipeline.captioning.prompts.question import Questions
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError


def asked(flags: PromptFlags) -> Questions:
    questions = questions_of(flags)
    assert questions is not None
    return questions


def wordings(flags: PromptFlags) -> dict[str, list[tuple[float, str]]]:
    return {each.name: [(weight, template.text) for weight, template in each.alternatives] for each in asked(flags)}


def test_nothing_is_asked_where_nothing_is_said() -> None:
    assert questions_of(PromptFlags()) is None


@pytest.mark.parametrize(
    ("flags", "questions"),
    [
        (PromptFlags(prompts=("One?",)), {"caption": [(1, "One?")]}),
        (PromptFlags(prompts=("3x zoom: what?",)), {"caption": [(1, "3x zoom: what?")]}),
        (
            PromptFlags(prompts=("weight=3: One?", "weight=0.5:Two?", "Three?")),
            {"caption": [(3, "One?"), (0.5, "Two?"), (1, "Three?")]},
        ),
        (
            PromptFlags(prompt_files=(("f", "weight=2: One\n\n---\nTwo\nlines\n--- \nThree --- dashes"),)),
            {"caption": [(2, "One"), (1, "Two\nlines"), (1, "Three --- dashes")]},
        ),
        (
            PromptFlags(prompts=("Describe.",), asks=("short=Shorten: {{ caption }} a=b",)),
            {"caption": [(1, "Describe.")], "short": [(1, "Shorten: {{ caption }} a=b")]},
        ),
        (PromptFlags(asks=("tags = Tags?",)), {"tags": [(1, " Tags?")]}),
        (PromptFlags(system="Be brief."), {"caption": [(1, "Describe this image.")]}),
        (
            PromptFlags(folder_prompts=True, asks=("tags=Tags?",)),
            {"caption": [(1, "Describe this image.")], "tags": [(1, "Tags?")]},
        ),
        (PromptFlags(preset="short"), {"caption": [(1, preset("short").text)]}),
    ],
)
def test_flags_make_questions(flags: PromptFlags, questions: dict[str, list[tuple[float, str]]]) -> None:
    assert wordings(flags) == questions


def test_a_system_text_goes_with_every_question_and_folders_with_the_first() -> None:
    flags = PromptFlags(prompts=("A?",), asks=("b=B?",), system="On {{ name }}.", folder_prompts=True)
    for question in asked(flags):
        assert question.system is not None
        assert question.system.render(Item("x.jpg", bytes), {}) == "On x."
        assert question.is_by_folder is (question.name == "caption")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (PromptFlags(prompts=("",)), "--prompt is empty"),
        (PromptFlags(prompts=("weight=0: x",)), "--prompt: a weight is a number above 0"),
        (PromptFlags(prompts=("weight=many: x",)), "--prompt: a weight is a number above 0"),
        (PromptFlags(prompts=("weight=2:",)), "--prompt is empty"),
        (PromptFlags(prompt_files=(("f.txt", "a\n---\n\n---\nb"),)), "--prompt-file f.txt, prompt 2 is empty"),
        (PromptFlags(prompt_files=(("f.txt", "a\n---\n{{"),)), "--prompt-file f.txt, prompt 2, line 1: "),
        (PromptFlags(preset="long"), "there is no preset 'long'; there are detailed, json, short, tags"),
        (PromptFlags(preset="short", prompts=("x",)), "--preset takes no --prompt"),
        (PromptFlags(asks=("tags",)), "--ask 'tags': say NAME=TEXT"),
        (PromptFlags(asks=("tags=",)), "--ask tags is empty"),
        (PromptFlags(prompts=("x",), asks=("caption=y",)), "two questions are called 'caption'"),
        (PromptFlags(system=" "), "--system is empty"),
    ],
)
def test_errors_name_the_flag(flags: PromptFlags, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        questions_of(flags)
    assert message in raised.value.message


def test_prompt_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    with pytest.raises(ConfigurationError, match=r"--prompt-file: .*p\.txt does not exist"):
        read_prompt_file(path)
    path.write_text("One\n---\nTwo\n")
    assert read_prompt_file(path) == (str(path), "One\n---\nTwo")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"--prompt-file: .*not UTF-8"):
        read_prompt_file(path)


def test_presets_are_plain_and_say_what_they_are_for() -> None:
    assert list(presets()) == ["detailed", "json", "short", "tags"]
    for name, purpose in presets().items():
        assert purpose
        assert not purpose.startswith("#")
        assert not preset(name).names
        assert "alone" in preset(name).text
    assert all(f'"{key}"' in preset("json").text for key in ("subject", "setting", "colors", "text"))
