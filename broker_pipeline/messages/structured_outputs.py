"""What an answer has to be, as a user asks for it and as the last stage obeys it."""

from typing import Annotated, Any

from msgspec import Meta

from broker_pipeline.messages.base import TokenId, WireStruct

MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 1024

GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
ChoiceText = Annotated[str, Meta(min_length=1, max_length=4096)]


class StructuredOutputs(WireStruct, frozen=True, kw_only=True):
    """What the answer has to be: exactly one of these."""

    json: dict[str, Any] | bool | None = None
    """A JSON schema that it fulfils; `true`: any JSON object."""
    regex: GrammarText | None = None
    """A regular expression that matches all of it."""
    choice: Annotated[tuple[ChoiceText, ...], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    """One of these texts."""
    grammar: GrammarText | None = None
    """A context-free grammar in Lark's notation, beginning at its rule `start`."""

    def __post_init__(self) -> None:
        if self.json is False:
            raise ValueError("Invalid field `json`: a schema, or true for any JSON object")
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            wrong = f" `{given[1]}`: not with `{given[0]}`, but one" if given else " `json`: one"
            raise ValueError(f"Invalid field{wrong} of {', '.join(self.__struct_fields__)}")


class GrammarSettings(WireStruct, frozen=True, kw_only=True):
    """What the last stage holds a session's answer to."""

    source: Annotated[str, Meta(min_length=1, max_length=8 * MAX_GRAMMAR_CHARS)]
    """The grammar as llguidance reads it."""
    begins_after: TokenId | None = None
    """The token of the output after which the answer begins, that is `</think>`; None: it begins at once."""
