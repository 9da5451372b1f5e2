"""A row as what is written of it: names with values, for every form of file the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.texts import valid
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable

OTHER_FIELDS = "other_fields"
_MAX_DEPTH = 100
_PROVENANCE = {
    "model": "text",
    "fingerprint": "text",
    "prompt_sha256": "text",
    "seed": "int",
    "parameters": "json",
    "job_id": "text",
    "finish_reason": "text",
    "num_input_tokens": "int",
    "num_output_tokens": "int",
}
_TAKEN = {"id", "file_name", "image", "video", "error", OTHER_FIELDS}
"""Names that mean something to sinks and readers, whether a file has such columns or not."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known to be there in each row, and the fields that items brought."""

    own: Mapping[str, object]
    kinds: Mapping[str, str]
    """Of `own`: text, int, json, image or video."""
    fields: Mapping[str, object]

    @property
    def all(self) -> dict[str, object]:
        """All values by name."""
        return {**self.own, **self.fields}


def record_of(row: Row, settings: SinkSettings, lead: Mapping[str, object]) -> Record:
    """Return what is written of a row, `lead` first.

    A field that is called like one of the run's own values gets `source_` in front of its name. Raises
    `ConfigurationError` where a question is called like what means something else.
    """
    for name, value in row.item.fields.items() if settings.keep_fields else ():
        if _is_deep(value, _MAX_DEPTH):
            reason = (
                f"{printable(row.item.id)}: the field {printable(name)} has lists and objects in each other, too deep"
            )
            raise ConfigurationError(reason, field="to")
    own = {**lead}
    texts = captions_of(row, settings)
    check_columns(row.lines, settings)
    own |= texts
    if settings.keep_failed:
        own["error"] = _reason(row)
    kinds = {name: name if name in {"image", "video"} else "text" for name in own}
    for name, line in row.lines.items() if settings.provenance else ():
        prefix = "" if len(row.lines) == 1 else f"{name}_"
        own |= {prefix + column: value for column, value in _provenance(line).items()}
        kinds |= {prefix + column: kind for column, kind in _PROVENANCE.items()}
    return Record(own, kinds, _renamed(row.item.fields, own.keys() | _TAKEN) if settings.keep_fields else {})


def captions_of(row: Row, settings: SinkSettings) -> dict[str, str | None]:
    """Return the captions by column, trigger in front; None where there is none."""
    captions = row.captions
    names = zip(_columns_of(row.lines, settings), row.lines, strict=True)
    return {column: triggered(captions[name], settings.trigger) if name in captions else None for column, name in names}


def check_columns(questions: Collection[str], settings: SinkSettings) -> None:
    """Raise `ConfigurationError` where the column of a question would be called like another one."""
    if taken := (_TAKEN | _PROVENANCE.keys()).intersection(_columns_of(questions, settings)):
        field = "text_column" if settings.text_column in taken else "ask"
        raise ConfigurationError(f"no column of captions can be called {min(taken)}", field=field)


def _columns_of(questions: Collection[str], settings: SinkSettings) -> list[str]:
    columns = list(questions)
    if columns and settings.text_column:
        columns[0] = settings.text_column
    if len(set(columns)) < len(columns):
        raise ConfigurationError(f"another question is called {columns[0]} already", field="text_column")
    return columns


def triggered(caption: str, trigger: str) -> str:
    """Return a caption with the trigger in front, as UTF-8 can have it."""
    return valid(", ".join(filter(None, (trigger, caption))))


def _is_deep(value: object, left: int) -> bool:
    """Whether a value has more than `left` lists and objects in each other."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return left == 0 or any(_is_deep(each, left - 1) for each in inner)


def _reason(row: Row) -> str | None:
    """Return why the first of a row's questions that has no caption has none."""
    if row.is_whole:
        return None
    line = next((each for each in row.lines.values() if not each.is_success), None)
    if line is None:
        return "not asked"
    return valid(line.error.message if line.error else line.guard or line.status)


def _provenance(line: CaptionLine) -> dict[str, object]:
    usage = line.usage
    counts = {
        "num_input_tokens": usage and usage.num_prompt_tokens,  # those of the picture are among them
        "num_output_tokens": usage and usage.num_output_tokens,
    }
    return {name: counts[name] if name in counts else getattr(line, name) for name in _PROVENANCE}


def _renamed(fields: Mapping[str, object], taken: Collection[str]) -> dict[str, object]:
    names = {valid(str(name)): value for name, value in fields.items()}
    renamed = {}
    for name, value in names.items():
        free = name
        while free in taken or (free != name and free in names):
            free = f"source_{free}"
        renamed[free] = value
    return renamed
