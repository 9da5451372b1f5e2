"""What is asked about an item under which name, and which questions need the answers of others."""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from broker_pipeline.captioning.prompts.template import NEARBY_NAMES, RESERVED_NAMES, Template
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_CONSTANTS = {"true", "false", "none"}


@dataclass(frozen=True)
class Question:
    """One thing to ask, in one of several wordings."""

    name: str
    alternatives: tuple[tuple[float, Template], ...]
    """Wordings, each with its weight."""
    system: Template | None = None
    is_by_folder: bool = False
    """Whether a folder's own prompt, where there is one, is asked instead."""

    def __post_init__(self) -> None:
        is_known = self.name in RESERVED_NAMES or self.name in _CONSTANTS or keyword.iskeyword(self.name)
        if is_known or not _NAME.fullmatch(self.name):
            reason = "it means something else in templates" if is_known else "take letters, digits and _"
            raise ConfigurationError(f"no question can be called {self.name!r}: {reason}", field="ask")
        if not self.alternatives or not all(0 < weight < float("inf") for weight, _ in self.alternatives):
            raise ConfigurationError(f"the question {self.name!r} needs wordings with weights above 0", field="prompt")

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables that any of its templates uses."""
        templates = [template for _, template in self.alternatives] + ([self.system] if self.system else [])
        return frozenset().union(*(template.names for template in templates))

    def choose(self, item_id: str, seed: int) -> Template:
        """Return a wording, as often as its weight says, and the same in every run."""
        if len(self.alternatives) == 1:
            return self.alternatives[0][1]
        text = f"{seed}\0{self.name}\0{item_id}".encode("utf-8", "surrogatepass")
        share = int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48
        sums = list(accumulate(weight for weight, _ in self.alternatives))
        return next(
            (each for end, (_, each) in zip(sums, self.alternatives, strict=True) if share * sums[-1] < end),
            self.alternatives[-1][1],  # where rounding leaves nothing
        )

    def prompt(self, item: Item, texts: Mapping[str, str], seed: int) -> str:
        """Return what to ask about an item: the wording chosen, or its folder's own. Raises as `Template.render`."""
        own = texts.get("folder_prompt") if self.is_by_folder else None
        template = self.choose(item.id, seed) if own is None else _of_folder(own)
        return template.render(item, texts)


@dataclass(frozen=True)
class Questions:
    """All that is asked about each item, in order; a question may use the answers of those before it by their names.

    `caption` and `tags` mean what stands beside the picture until a question of that name is answered.
    """

    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        names = [each.name for each in self.questions]
        for index, question in enumerate(self.questions):
            if question.name in names[:index]:
                raise ConfigurationError(f"two questions are called {question.name!r}", field="ask")
            unanswered = set(names[index:]) - ({question.name} & NEARBY_NAMES)
            if early := sorted(question.names & unanswered):
                raise ConfigurationError(
                    f"the question {question.name!r} uses the answer to {early[0]!r}, which is not asked before it; a "
                    f"column of that name is fields[{early[0]!r}]",
                    field="ask",
                )

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    @property
    def names(self) -> frozenset[str]:
        """Variables that any template uses."""
        return frozenset().union(*(each.names for each in self.questions))

    def after(self, name: str) -> tuple[str, ...]:
        """Return the names of the earlier questions whose answers a question uses."""
        names = [each.name for each in self.questions]
        index = names.index(name)
        return tuple(each for each in names[:index] if each in self.questions[index].names)

    @cached_property
    def waves(self) -> tuple[tuple[Question, ...], ...]:
        """The questions as they can be asked: those of a wave at once, as their answers are not in each other."""
        depths: dict[str, int] = {}
        for each in self.questions:
            depths[each.name] = 1 + max((depths[earlier] for earlier in self.after(each.name)), default=-1)
        waves = range(max(depths.values(), default=-1) + 1)
        return tuple(tuple(each for each in self.questions if depths[each.name] == wave) for wave in waves)


@lru_cache(maxsize=4096)
def _of_folder(text: str) -> Template:
    return Template(text, "the folder's prompt.txt")
