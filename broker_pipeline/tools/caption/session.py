"""One call of `caption` from its flags to its end: what it says, asks, writes, and comes to."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console

from broker_pipeline.captioning.answers import Answers
from broker_pipeline.captioning.asked_model import asked_model
from broker_pipeline.captioning.asker import Asker
from broker_pipeline.captioning.item_run import ItemRun
from broker_pipeline.captioning.line_maker import LineMaker
from broker_pipeline.captioning.log import CaptionLog
from broker_pipeline.captioning.output import STANDARD_OUTPUT
from broker_pipeline.captioning.run import CaptionRun, RunSettings, in_thread
from broker_pipeline.captioning.sinks.row import Sink
from broker_pipeline.captioning.sinks.sidecars import Sidecars
from broker_pipeline.captioning.sources.braces import expanded
from broker_pipeline.captioning.sources.chain import Chain
from broker_pipeline.captioning.sources.files import left_out_text
from broker_pipeline.captioning.sources.item import Item, Source
from broker_pipeline.captioning.sources.path_list import ListSource
from broker_pipeline.captioning.sources.tables.table import TableSource
from broker_pipeline.captioning.summary import Summary
from broker_pipeline.captioning.verify import Verification, Verified
from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import GatewayUnreachableError, InvalidRequestError
from broker_pipeline.messages.jobs import DEFAULT_PROMPT
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.pictures.formats import ENDINGS
from broker_pipeline.process.daemon_thread import in_daemon_thread
from broker_pipeline.process.terminal import counted, printable
from broker_pipeline.tools.caption.apart import check_apart
from broker_pipeline.tools.caption.data_settings import Options, prompting_of, rules_of, sinks_of, source_of
from broker_pipeline.tools.caption.foretold import foretold
from broker_pipeline.tools.caption.progress import CaptionProgress, print_summary, say
from broker_pipeline.tools.caption.recipe import recipe_of, write_recipe

_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a call is told besides what `data_settings` reads."""

    paths: tuple[str, ...]
    """Of this machine, or URLs."""
    gateway: str
    key: str | None
    out: Path
    patience_s: float
    limit: int | None
    only_failed: bool
    run: RunSettings


@dataclass(slots=True)
class _Found:
    """A source as this call takes it: up to its limit."""

    source: Source
    limit: int | None
    count: int | None = field(default=None, init=False)
    _items: Iterator[Item] = field(default_factory=lambda: iter(()), init=False)

    def look(self) -> None:
        """Count the items, as far as anybody knows; blocks. `InvalidRequestError` where there are none."""
        count = self.source.count()
        self.count = count if self.limit is None or count is None else min(count, self.limit)
        items = iter(self.source)
        first = list(islice(items, 1)) if count is None and self.chain else []  # a pipe can be read once
        if not (count or first) and self.chain:
            raise nothing_there(self.chain)
        self._items = itertools.chain(first, items)

    def __iter__(self) -> Iterator[Item]:
        return islice(self._items, self.limit)

    @property
    def chain(self) -> Chain | None:
        """The files and folders, where they are what is taken."""
        return self.source if isinstance(self.source, Chain) else None


@dataclass(frozen=True, slots=True)
class _Opened:
    """What every call needs: a gateway, the model behind it, the log."""

    asker: Asker
    conductor: ConductorStatus
    log: CaptionLog
    items: ItemRun


class CaptionSession:
    """Runs one call. Every method raises as `CaptionRun` and `GatewayClient` do."""

    def __init__(self, settings: SessionSettings, options: Options, console: Console) -> None:
        """Check the flags; raises `ConfigurationError` or `InvalidRequestError` naming one."""
        self._settings = settings
        self._options = options
        self._console = console
        self._closing = ExitStack()
        self._paths = [each for path in settings.paths for each in expanded(path)]
        self._prompting = prompting_of(self._paths, options)
        self._rules = rules_of(options)
        self._found = _Found(source_of(settings.paths, self._paths, options, self._closing), settings.limit)

    def close(self) -> None:
        """Close what a list is read from; may be called again."""
        self._closing.close()

    async def caption(self) -> bool:
        """Caption everything; returns whether nothing failed."""
        sinks = await in_daemon_thread(self._sinks)
        async with self._open(sinks) as opened:
            self._write_recipe()
            summary = Summary(self._found.count)
            progress = CaptionProgress(self._console, summary)
            run = CaptionRun(opened.items, sinks, progress, summary, self._settings.run)
            started = time.monotonic()
            try:
                with progress.shown():
                    await run.run(self._found)
            finally:
                print_summary(self._console, summary, opened.log.name, time.monotonic() - started)
                self._say_sidecars(sinks)
                self._say_left_out()
            return summary.num_failed == summary.num_left_out == 0

    def _sinks(self) -> list[Sink]:
        """Return the sinks, after a look at each part of the source: that it has its column, and sinks take it."""
        self._found.look()
        sinks = sinks_of(self._settings.paths, self._paths, self._prompting.names, self._options)
        for item in self._found.chain.samples() if self._found.chain else ():
            for sink in sinks:
                sink.check(item)
        return sinks

    async def verify(self, num: int) -> bool:
        """Ask again about some captions of the log; returns whether all came out the same."""
        await in_daemon_thread(self._found.look)
        async with self._open() as opened:
            chosen = Verification(
                opened.items, opened.asker, opened.conductor.fingerprint, num, opened.log.num_captioned
            )
            verified = Verified()
            async for item in in_thread(iter(self._found)):
                if chosen.is_chosen(item):
                    await chosen.item(item, verified)
            say(
                self._console,
                f"{counted(verified.num_same, 'caption')} made again the same, {verified.num_different} different",
            )
            for name, before, now in verified.examples:
                say(self._console, f"  {printable(name)}\n    was {printable(before)}\n    is  {printable(now)}")
            return verified.num_different == 0 and verified.num_same > 0

    async def dry_run(self) -> bool:
        """Say what would be asked of how many items, and how long that would take."""
        check_apart(self._settings.paths, self._paths, self._options)
        await self._show_first()
        try:
            await self._foretell()
        except GatewayUnreachableError as error:
            say(self._console, f"how long that takes nobody can say: {error.message}")
        return True

    async def _show_first(self) -> None:
        await in_daemon_thread(self._found.look)
        num = self._found.count
        items = "an unknown number of items" if num is None else counted(num, "item")
        answers = f", {counted(num * len(self._prompting.names), 'answer')}" if num else ""
        say(self._console, f"{items}{answers}{self._most_tokens()}")
        self._say_left_out()
        for item in await in_daemon_thread(lambda: list(islice(iter(self._found), _NUM_SHOWN))):
            for name, text in self._prompting.shown(item).items():
                say(self._console, f"  {printable(item.id)}  {name}: {printable(text or DEFAULT_PROMPT)}")

    async def _foretell(self) -> None:
        async with GatewayClient.open(self._settings.gateway, patience_s=0.0, key=self._settings.key) as client:
            status = await client.status()
        say(self._console, foretold(status, (self._found.count or 0) * len(self._prompting.names)))

    def _most_tokens(self) -> str:
        most = self._prompting.base.sampling.max_tokens
        return "" if most is None else f" of up to {counted(most, 'token')}"

    @asynccontextmanager
    async def _open(self, sinks: Sequence[Sink] = ()) -> AsyncIterator[_Opened]:
        settings = self._settings
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                GatewayClient.open(settings.gateway, patience_s=settings.patience_s, key=settings.key)
            )
            await client.check()
            conductor = await asked_model(client, settings.patience_s, lambda text: say(self._console, text))
            log = stack.enter_context(CaptionLog(settings.out))
            self._announce(conductor, log)
            calls = await stack.enter_async_context(BulkCalls.open(client))
            yield self._opened(Asker(calls), conductor, log, sidecars_of(sinks))

    def _opened(
        self, asker: Asker, conductor: ConductorStatus, log: CaptionLog, sidecars: Sequence[Sidecars]
    ) -> _Opened:
        prompting = replace(self._prompting, base=replace(self._prompting.base, model=conductor.fingerprint))
        missing = [each for each in sidecars if each.mode == "missing"]
        answers = Answers(asker, log, LineMaker(conductor.model or None), self._rules)
        items = ItemRun(
            asker,
            log,
            answers,
            prompting,
            only_failed=self._settings.only_failed,
            by_reference=self._options["by_reference"],
            is_done=next((partial(each.has_all, names=prompting.names) for each in missing), None),
        )
        return _Opened(asker, conductor, log, items)

    def _announce(self, conductor: ConductorStatus, log: CaptionLog) -> None:
        console, chain = self._console, self._found.chain
        if log.num_torn_bytes:
            say(console, f"cut off a torn line of {log.name} ({log.num_torn_bytes} bytes)")
        if chain is not None and chain.num_repeated:
            say(console, f"named again by further paths, and taken once: {counted(chain.num_repeated, 'picture')}")
        if log.num_without_model and not self._prompting.base.occasion:
            say(
                console,
                f"naming no model, and counted for any: {counted(log.num_without_model, 'caption')} in {log.name}; "
                "--again asks anew",
            )
        known = f"; {log.name} has {counted(log.num_captioned, 'caption')} already" if log.num_captioned else ""
        asked = f"{conductor.model} at {self._settings.gateway}".removeprefix(" at ")
        num = "pictures" if self._found.count is None else counted(self._found.count, "picture")
        say(console, f"{num} for {asked}{known}")
        self._say_left_out()

    def _say_left_out(self) -> None:
        if (chain := self._found.chain) is None:
            return
        if chain.left_out:
            say(self._console, left_out_text(chain.left_out))
        for name, num in chain.repeated.items():
            say(self._console, f"{printable(name)}: its key was there before ({num} such in this tar); both are items")

    def _say_sidecars(self, sinks: Sequence[Sink]) -> None:
        for sink in sidecars_of(sinks):
            if num := sink.num_left:
                text = f"left as before, with other texts: {counted(num, 'sidecar')}; --sidecar-mode overwrite replaces"
                say(self._console, text)

    def _write_recipe(self) -> None:
        out = self._settings.out
        if out == STANDARD_OUTPUT:
            return
        told = {**self._options, "paths": self._settings.paths}
        write_recipe(recipe_of(out), told)


def sidecars_of(sinks: Sequence[Sink]) -> list[Sidecars]:
    """Return those that write beside pictures."""
    return [sink for sink in sinks if isinstance(sink, Sidecars)]


def nothing_there(chain: Chain) -> InvalidRequestError:
    """Return the error for a source without items."""
    if all(isinstance(part, ListSource | TableSource) for part in chain.parts):
        reason = f"nothing is in {printable(chain.name)}: no row or line names a picture"
        return InvalidRequestError(reason, field="PATHS")
    left_out = f"; {left_out_text(chain.left_out)}" if chain.left_out else ""
    if num := chain.num_filtered:
        reason = (
            f"no pictures are left: --include, --exclude, sizes and ages leave out {counted(num, 'file')}{left_out}"
        )
        return InvalidRequestError(reason, field="PATHS")
    return InvalidRequestError(f"no pictures there; looked for {', '.join(sorted(ENDINGS))}{left_out}", field="PATHS")
