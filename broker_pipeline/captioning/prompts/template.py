"""A prompt with places for what is known of the item: Jinja in a sandbox, as prompts come with data sets, too.

    Describe {{ name }} of {{ folder }}.{% if tags %} It was tagged: {{ tags }}.{% endif %}

What the item lacks is an error where it is printed, so that no prompt is asked with a hole in it. `tags`, `caption`
and columns that are null may be asked for with `if`; a name that nobody knows may not, as it is a slip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta
from jinja2 import Template as Compiled
from jinja2.runtime import TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment

from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from broker_pipeline.process.terminal import printable

MAX_CHARACTERS = 100_000
_ERRORS = (TemplateError, TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RecursionError)


class _Unknown(StrictUndefined):
    """What no item has: an error however it is used."""

    @property
    def _undefined_message(self) -> str:
        return f"there is no `{self._undefined_name}`"


class _Absent(_Unknown):
    """What this item lacks and others may have: no, if asked for."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]  # the base class always raises
        return False


class _Fields(Mapping[str, object]):
    """The columns. `fields.items` is the column of that name, where there is one, and not what mappings have."""

    def __init__(self, columns: Mapping[str, object]) -> None:
        self._columns = columns

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_") and name in self._columns:
            return self._columns[name]
        return object.__getattribute__(self, name)

    def __getitem__(self, name: str) -> object:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(self._columns)


def _printed(value: object) -> object:
    """Return what is printed; `TypeError` for what names of Jinja and Python mean: no column was meant by them."""
    if isinstance(value, TemplateReference) or (callable(value) and not isinstance(value, Undefined)):
        raise TypeError(f"it prints a {type(value).__name__}, which is no text; a column is fields['NAME']")
    return value


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=_Unknown, trim_blocks=True, lstrip_blocks=True, finalize=_printed
    )
    del environment.globals["lipsum"], environment.filters["random"]  # another prompt in every run
    return environment


_ENVIRONMENT = _environment()
OWN_NAMES = frozenset({"name", "id", "folder", "path", "fields"})
"""Variables that mean the same for every item, whatever its columns are called."""
RESERVED_NAMES = OWN_NAMES | frozenset(_ENVIRONMENT.globals) | {"loop", "self", "folder_prompt"}
NEARBY_NAMES = frozenset({"tags", "caption"})


class Template:
    """A prompt, compiled once; `where` is what a person calls it, such as the flag that it came by.

    A text without `{{` and `{%` is nothing but itself: braces alone, as JSON has them, mean nothing.
    """

    def __init__(self, text: str, where: str) -> None:
        """Compile `text`; raises `ConfigurationError` where that fails, or it is empty."""
        if not text.strip():
            raise ConfigurationError(f"{where} is empty", field="prompt")
        self.text = text
        self.where = where
        self.names: frozenset[str] = frozenset()
        """Variables that it uses."""
        self._compiled: Compiled | None = None
        if "{{" in text or "{%" in text:
            self._compile()

    def render(self, item: Item, texts: Mapping[str, str]) -> str:
        """Return the prompt for an item; `texts` are answers to earlier questions, and what stands beside the item.

        Raises `InvalidRequestError` where the template names what is not there, or makes nothing, or far too much.
        """
        if self._compiled is None:
            return self.text
        pieces: list[str] = []
        num_left = MAX_CHARACTERS
        try:
            for piece in self._compiled.generate(_variables(item, texts)):
                pieces.append(piece)
                num_left -= len(piece)
                if num_left < 0:  # also ends loops in loops
                    raise ValueError(f"it becomes longer than {MAX_CHARACTERS} characters")
        except _ERRORS as error:
            raise self._refused(item, str(error)) from error
        prompt = _sendable("".join(pieces))
        if not prompt.strip():
            raise self._refused(item, "nothing is left of it")
        return prompt

    def _compile(self) -> None:
        try:
            self.names = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(self.text)))
            self._compiled = _ENVIRONMENT.from_string(self.text)
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"{self.where}, line {error.lineno}: {error.message}", field="prompt") from error
        except (*_ERRORS, SyntaxError) as error:  # Python's own bounds, of blocks in blocks
            raise ConfigurationError(f"{self.where}: {error}", field="prompt") from error

    def _refused(self, item: Item, reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.where} cannot be asked about {printable(item.id)}: {reason}", field="prompt")


def _variables(item: Item, texts: Mapping[str, str]) -> dict[str, object]:
    fields = {name: _Absent(name=name) if value is None else value for name, value in item.fields.items()}
    path = item.path
    own = {
        "name": item.name,
        "id": item.id,
        "folder": path.absolute().parent.name if path else _Absent(name="folder"),
        "path": str(path) if path else _Absent(name="path"),
        "fields": _Fields(fields),
    }
    return {name: _Absent(name=name) for name in NEARBY_NAMES} | fields | dict(texts) | own


def _sendable(text: str) -> str:
    """Return the text with escapes for what no request can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
