"""Which wording an item gets, and which questions wait for others."""

from collections import Counter

import pytest

from broker_pipeline.captioning.prompts.question import Question, Questions
from broker_pipeline.captioning.prompts.template import Template
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError


def question(name: str, text: str = "What?", system: str | None = None) -> Question:
    return Question(name, ((1, Template(text, name)),), system and Template(system, "--system"))


def weighted(*weights: float) -> Question:
    return Question("caption", tuple((weight, Template(f"prompt {i}", "x")) for i, weight in enumerate(weights)))


def test_wordings_are_as_frequent_as_their_weights() -> None:
    counts = Counter(weighted(3, 1, 0.5).choose(f"{i}.jpg", 7).text for i in range(9000))
    shares = [counts[f"prompt {i}"] / 9000 for i in range(3)]
    assert shares == pytest.approx([3 / 4.5, 1 / 4.5, 0.5 / 4.5], abs=0.03)


def test_an_item_has_the_same_wording_in_every_run_and_others_with_another_seed() -> None:
    some = weighted(1, 1)
    ids = [f"{i}.jpg" for i in range(40)] + ["caf\udce9.jpg"]
    chosen = [some.choose(each, 0).text for each in ids]
    assert chosen == [weighted(1, 1).choose(each, 0).text for each in ids]
    assert chosen != [some.choose(each, 1).text for each in ids]
    assert "".join(text[-1] for text in chosen[:12]) == "001011010101"  # also in later versions


def test_questions_are_asked_in_waves() -> None:
    questions = Questions(
        (
            question("caption", "Describe. {{ caption }}"),
            question("tags", "Tags?"),
            question("short", "Shorten: {{ caption }}", "Mind {{ tags }}."),
            question("title", "{{ short }}"),
        )
    )
    assert [questions.after(each.name) for each in questions] == [(), (), ("caption", "tags"), ("short",)]
    assert [[each.name for each in wave] for wave in questions.waves] == [["caption", "tags"], ["short"], ["title"]]
    assert questions.names == {"caption", "tags", "short"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([("a", "{{ b }}"), ("b", "x")], "the question 'a' uses the answer to 'b'"),
        ([("a", "{{ b }}"), ("b", "{{ a }}")], "the question 'a' uses the answer to 'b'"),
        ([("a", "{{ a }}")], "the question 'a' uses the answer to 'a'"),
        ([("a", "x"), ("a", "y")], "two questions are called 'a'"),
        ([("fields", "x")], "no question can be called 'fields': it means something else"),
        ([("range", "x")], "no question can be called 'range'"),
        ([("in", "x")], "no question can be called 'in'"),
        ([("two words", "x")], "take letters, digits and _"),
        ([("", "x")], "take letters, digits and _"),
    ],
)
def test_names_and_orders_that_cannot_be(asked: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Questions(tuple(question(name, text) for name, text in asked))
    assert message in raised.value.message


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(ConfigurationError):
        weighted(1, weight)


def test_a_folders_own_prompt_is_asked_instead() -> None:
    main = Question("caption", ((1, Template("usual", "x")),), is_by_folder=True)
    item = Item("a.jpg", bytes)
    assert main.prompt(item, {}, 0) == "usual"
    assert main.prompt(item, {"folder_prompt": "own {{ name }}"}, 0) == "own a"
    assert question("caption").prompt(item, {"folder_prompt": "own"}, 0) == "What?"
