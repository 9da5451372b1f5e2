"""What is cut off captions, and what is left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.captioning.guards.cleaning import clean, unfenced


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("The image shows a cat.", "A cat."),
        ("This image depicts an old man.", "An old man."),
        ("The provided image features two dogs.", "Two dogs."),
        ("This photograph captures a busy street.", "A busy street."),
        ("The image prominently displays a clock.", "A clock."),
        ("In this image, a cat sleeps.", "A cat sleeps."),
        ("In the picture, we can see a lake.", "A lake."),
        ("In this photo we see a lake.", "A lake."),
        ("In this image, there is a cat.", "There is a cat."),
        ("This is an image of a cat.", "A cat."),
        ("The image is a photo of a cat.", "A cat."),
        ("Caption: The image shows a cat.", "A cat."),
        ("Sure! Here is a caption for the image:\n\nA cat.", "A cat."),
        ("Here's a detailed description of the image: A cat.", "A cat."),
        ('"A cat."', "A cat."),
        ("“The image shows \u2018a cat\u2019.”", "\u2018a cat\u2019."),
        ("**Description:** A **black** cat.", "A black cat."),
        ("# A cat\n\nIt sleeps.", "A cat\n\nIt sleeps."),
        ("```\nA cat.\n```", "A cat."),
        ('```json\n{"subject": "a cat"}\n```', '{"subject": "a cat"}'),
        ("A cat.\n\nLet me know if you need anything else!", "A cat."),
        ("A cat. Feel free to ask for more.", "A cat."),
        ("A cat. I hope this helps! Let me know if you want more.", "A cat."),
        ("A cat. If you have any questions, feel free to ask.", "A cat."),
        ("  A  cat. \t\r\n\n\n\nIt sleeps.  ", "A cat.\n\nIt sleeps."),
        ("The image shows ßharp.", "ßharp."),
    ],
)
def test_what_models_say_around_captions_is_cut_off(text: str, caption: str) -> None:
    assert clean(text) == caption


@pytest.mark.parametrize(
    "text",
    [
        "A cat.",
        "The image on the wall shows a cat.",
        "This painting depicts a horse.",
        "The scene is calm.",
        "In the picture frame stands a vase.",
        "The picture shows that nobody came.",
        '"STOP" and "GO"',
        "A shirt with #1 on it, 5 * 3 ** 2.",
        "The door says: let me know if you are in.",
        "A poster. If you want peace, prepare for war.",
        '"Hello," says the sign',
        "`",
        "**",
        "...",
        "The image shows",
    ],
)
def test_captions_are_left_alone(text: str) -> None:
    assert clean(text) == text


def test_fences_around_all_of_a_text() -> None:
    assert unfenced("```json\n{}\n```") == "{}"
    assert unfenced("Here: ```json\n{}\n```") == "Here: ```json\n{}\n```"


OPENINGS = "|The image shows |In this image, |Caption: |Sure! Here is a caption: |a cat|. |ß|**|\"|'"
MARKS = "|“|”|`|```\n|\n```|# |\n\n\n|  |\t"
CLOSINGS = "|Let me know if you like it.|I hope this helps!"
PIECES = (OPENINGS + MARKS + CLOSINGS).split("|")
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(deadline=None, max_examples=250)
@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@settings(deadline=None, max_examples=250)
@given(TEXTS)
def test_something_is_always_left(text: str) -> None:
    assert bool(clean(text).strip()) == bool(text.strip())
    assert any(map(str.isalnum, clean(text))) == any(map(str.isalnum, text))


def test_endless_texts_take_no_time() -> None:
    text = "# The image shows " * 1000 + "Let me know if you like it. " * 1000
    assert clean(text) == text  # longer than any caption
