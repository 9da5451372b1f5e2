"""Stop strings in a text that comes in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.conductor.output.stop_strings import StopStrings


def feed(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    checker = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, is_stopped = checker.feed(piece)
        shown.append(text)
        if is_stopped:
            return shown, True
    return [*shown, checker.finish()], False


def test_the_picture_in_the_docstring() -> None:
    assert feed(("###",), ["a", " #", "#", "b", "##", "#c"]) == (["a", " ", "", "##b", "", ""], True)


def test_held_text_is_shown_when_nothing_follows() -> None:
    assert feed(("stop",), ["a sto"]) == (["a ", "sto"], False)


PIECES = st.lists(st.text("ab#", max_size=3), max_size=12)
STOPS = st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS)
def test_what_is_shown_is_the_text_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    shown, is_stopped = feed(tuple(stops), pieces)
    text = "".join(pieces)
    # The first stop to be complete decides, and of several complete with the same piece the one that begins first.
    for end in range(len(pieces) + 1):
        prefix = "".join(pieces[:end])
        found = [prefix.find(stop) for stop in stops if stop in prefix]
        if found:
            assert is_stopped
            assert "".join(shown) == prefix[: min(found)]
            return
    assert not is_stopped
    assert "".join(shown) == text


@given(PIECES, STOPS, st.integers(0, 12))
def test_a_stop_that_is_complete_too_early_is_text(pieces: list[str], stops: list[str], num_early: int) -> None:
    checker = StopStrings(stops)
    shown = ""
    for number, piece in enumerate(pieces):
        before = "".join(pieces[:number])
        text, is_stopped = checker.feed(piece, may_stop=number >= num_early)
        shown += text
        ends = [
            index + len(stop)
            for stop in stops
            for index in range(len(before + piece))
            if (before + piece).startswith(stop, index)
        ]
        assert is_stopped == (number >= num_early and any(end > len(before) for end in ends))
        if is_stopped:
            return
    assert shown + checker.finish() == "".join(pieces)
