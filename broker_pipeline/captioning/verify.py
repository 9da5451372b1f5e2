"""Makes captions of a log again, with the parameters and the seed that its lines have, and compares them."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from broker_pipeline.captioning.answers import Content
from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.item_run import ItemRun
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.client.visual_params import VisualParams
from broker_pipeline.errors import GatewayUnreachableError, PipelineError
from broker_pipeline.messages.sampling import SamplingParams

_NUM_EXAMPLES = 5

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(slots=True)
class Verified:
    """How many captions came out the same."""

    num_same: int = 0
    num_different: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    """Of those that did not: the item, the caption in the log, what came now or why nothing did."""

    def count(self, line: CaptionLine, now: str, *, is_caption: bool) -> None:
        """Take note of one."""
        given = line.uncleaned or line.caption or ""
        if is_caption and now == given:
            self.num_same += 1
            return
        self.num_different += 1
        if len(self.examples) < _NUM_EXAMPLES:
            self.examples.append((line.path, given, now))


class Verification:
    """Asks again about some items whose captions a log has."""

    def __init__(self, items: ItemRun, asker: Asker, model: str, num_sampled: int, num_captioned: int) -> None:
        """Choose about `num_sampled` of `num_captioned` captions by their names, the same in every run."""
        self._items = items
        self._asker = asker
        self._model = model
        self._share = num_sampled / max(num_captioned, 1)

    def is_chosen(self, item: Item) -> bool:
        """Whether an item is one of the sample."""
        digest = hashlib.blake2b(item.id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    async def item(self, item: Item, verified: Verified) -> None:
        """Ask again for the captions of one item; raises `GatewayUnreachableError`."""
        known = await self._items.known(item)
        if known is None:
            return
        content, lines = known
        for line in lines:
            if line.is_success and line.same_as is None:  # others were not asked for
                await self._line(line, content, verified)

    async def _line(self, line: CaptionLine, content: Content, verified: Verified) -> None:
        picture, request = Picture(line.path, content.sha256), request_of(line, self._model)
        try:
            record = await self._asker.ask(picture, content.media, request, 0, is_video=content.is_video)
        except GatewayUnreachableError:
            raise
        except PipelineError as error:
            verified.count(line, str(error), is_caption=False)
            return
        result = record.result
        said = result.text if result else (record.error.message if record.error else record.status)
        verified.count(line, said, is_caption=record.status == "succeeded")


def request_of(line: CaptionLine, model: str) -> CaptionRequest:
    """Return what was asked for a line, with the seed that was drawn for it, as a question of its own."""
    sampling, visual = _known(line, SamplingParams), _known(line, VisualParams)
    return CaptionRequest(line.prompt, sampling, model, line.system, occasion=uuid.uuid4().hex, visual=visual)


def _known(line: CaptionLine, kind: type[T]) -> T:
    said = line.parameters or {}
    names = kind.__struct_fields__
    return msgspec.convert({name: said[name] for name in names if said.get(name) is not None}, kind)
