"""What lies beside a picture: a caption, tags, and a prompt for the pictures of a folder.

photos/prompt.txt        asked about all pictures in photos/ and below ...
photos/cats/prompt.txt   ... but for those in photos/cats/
photos/cats/tom.jpg
photos/cats/tom.txt      its caption, or its tags with commas between them (tom.caption and tom.tags come first)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from broker_pipeline.captioning.prompts.template import Template
from broker_pipeline.captioning.prompts.text_file import read_text
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError, InvalidRequestError
from broker_pipeline.process.terminal import printable

PROMPT_FILE = "prompt.txt"
_MIN_TAGS = 3
_MAX_WORDS = 4
_SENTENCE_END = re.compile(r"[.!?](\s|$)")


@dataclass(frozen=True, slots=True)
class Nearby:
    """Reads, for templates that use the variables `names`, what lies beside an item. Blocks."""

    names: frozenset[str]
    roots: frozenset[Path] | None = None
    """Folders above which no prompt is looked for; None where folders' prompts are not asked for."""

    def __call__(self, item: Item) -> dict[str, str]:
        """Return the texts by name, without those that are not there; raises `InvalidRequestError`."""
        if item.path is None:
            return {}
        own = None if self.roots is None else folder_prompt(item.path.parent, self.roots)
        names = self.names | (own.names if own else frozenset())
        found = {
            "caption": caption_beside(item.path) if "caption" in names else None,
            "tags": tags_beside(item.path) if "tags" in names else None,
            "folder_prompt": own.text if own else None,
        }
        return {name: text for name, text in found.items() if text}


def caption_beside(picture: Path) -> str | None:
    """Return the text of a picture's `.caption` or `.txt` file."""
    return read_text(picture.with_suffix(".caption")) or read_text(picture.with_suffix(".txt"))


def tags_beside(picture: Path) -> str | None:
    """Return the tags of a picture's `.tags` file, or of a `.txt` file that looks like tags, as `cat, indoors`."""
    if text := read_text(picture.with_suffix(".tags")):
        return ", ".join(_tags(text))
    text = read_text(picture.with_suffix(".txt")) or ""
    return ", ".join(_tags(text)) if _are_tags(text) else None


@lru_cache(maxsize=4096)
def folder_prompt(folder: Path, roots: frozenset[Path]) -> Template | None:
    """Return the prompt in a folder, or in the nearest one above it, no higher than the root that it is under.

    A folder under none of the roots has only its own. Raises `InvalidRequestError` where the file is no prompt.
    """
    path = folder / PROMPT_FILE
    if text := read_text(path):
        try:
            return Template(text, printable(path))
        except ConfigurationError as error:  # that folder's pictures fail, and the others go on
            raise InvalidRequestError(error.message, field="prompt") from error
    is_below = folder not in roots and not roots.isdisjoint(folder.parents)
    return folder_prompt(folder.parent, roots) if is_below else None


def _tags(text: str) -> list[str]:
    return [" ".join(tag.split()) for tag in re.split(r"[,\n]", text) if tag.strip()]


def _are_tags(text: str) -> bool:
    """Whether a text is one line of short pieces between commas, and no sentence."""
    tags = _tags(text)
    are_short = len(tags) >= _MIN_TAGS and all(len(tag.split()) <= _MAX_WORDS for tag in tags)
    return are_short and "\n" not in text and not _SENTENCE_END.search(text)
