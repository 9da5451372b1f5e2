"""The command `broker-pipeline demo`: a whole pipeline in one command, and nothing left behind."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker_pipeline import exit_codes
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient, fetch_status
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.process.terminal import make_console, plain_table
from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.directory import demo_directory
from broker_pipeline.tools.demo.pictures import DemoPicture, photographs, scenes, trained_model
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.run import run_cluster
from broker_pipeline.tools.local.view import LiveView, PlainView, local_view
from broker_pipeline.tools.operate.status_view import describe_workers

_MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture, the job that captioned it, and the seconds from its submission to its caption."""

    picture: DemoPicture
    record: JobRecord
    seconds: float

    @property
    def caption(self) -> str:
        """What the model said, or why it said nothing."""
        if self.record.result is not None:
            return self.record.result.text
        return self.record.error.message if self.record.error else self.record.status

    @property
    def is_right(self) -> bool:
        """Whether the caption is the expected one."""
        return self.record.status == "succeeded" and self.caption.strip() == self.picture.expected


@click.command()
def command() -> None:
    """Caption pictures with a small model on this machine: three stages, a vision worker, NATS, Redis, gateway.

    Takes well under a minute and cleans up after itself. The model is tiny: no GPU and no download is needed.
    """
    sys.exit(asyncio.run(_demo(make_console())))


async def _demo(console: Console) -> int:
    pictures = [*scenes(), *photographs()]
    view = local_view(console)
    with demo_directory() as directory:
        view.say("exporting the small model")
        settings = _settings(directory, await make_artifact(directory, trained_model()))
        shown = _Shown(console, view, pictures)
        code = await run_cluster(settings, view, shown.caption_all)
    if shown.captioned is None:
        return exit_codes.INTERRUPTED
    shown.print_summary()
    return code or shown.exit_code


def _settings(directory: Path, artifact: Path) -> LocalSettings:
    """Cut three stages, one of them inside the first three layers: their owners get visual rows of their own."""
    num_layers = read_model_facts(artifact).num_layers
    return LocalSettings(
        model=artifact,
        stages=parse_cut(f"1,{max(2, num_layers // 2)}", num_layers),
        data_dir=directory / "run",
        start_timeout_s=120.0,
    )


class _Shown:
    """The demo's work, and what it shows of it."""

    def __init__(self, console: Console, view: PlainView | LiveView, pictures: list[DemoPicture]) -> None:
        self.captioned: list[Captioned] | None = None
        self._console = console
        self._view = view
        self._pictures = pictures
        self._workers = ""
        self._seconds = 0.0

    async def caption_all(self, cluster: LocalCluster) -> None:
        """Caption every picture at once, as a queue of jobs; then ask who took part."""
        self._view.say(f"captioning {len(self._pictures)} pictures through {cluster.gateway_url}")
        started = time.monotonic()
        with exit_codes.raising_first_error():
            async with GatewayClient.open(cluster.gateway_url, patience_s=60) as client, asyncio.TaskGroup() as tasks:
                jobs = [tasks.create_task(_caption(client, picture)) for picture in self._pictures]
        self._seconds = time.monotonic() - started
        self._workers = describe_workers(await fetch_status(cluster.gateway_url))
        self.captioned = [job.result() for job in jobs]
        self._view.say("done; stopping")

    @property
    def exit_code(self) -> int:
        """0 when every picture has a caption."""
        assert self.captioned is not None
        has_all = all(job.record.status == "succeeded" for job in self.captioned)
        return exit_codes.OK if has_all else exit_codes.SOME_FAILED

    def print_summary(self) -> None:
        """Print captions, timings and workers."""
        assert self.captioned is not None
        num_tokens = sum(job.record.result.usage.num_output_tokens for job in self.captioned if job.record.result)
        num_done = sum(job.record.status == "succeeded" for job in self.captioned)
        known = [job for job in self.captioned if job.picture.expected is not None]
        self._console.print(_table(self.captioned))
        self._say(f"{num_done} of {len(self.captioned)} captioned, {num_tokens} tokens, in {self._seconds:.2f} s")
        self._say(f"workers that took part:\n{self._workers}")
        self._say(f"{sum(job.is_right for job in known)} of {len(known)} captions are the expected ones.")
        if len(known) < len(self.captioned):
            self._say("The model has learned such scenes only: what it says about photographs means nothing.")

    def _say(self, text: str) -> None:
        self._console.print(f"\n{text}", markup=False, soft_wrap=True)


async def _caption(client: GatewayClient, picture: DemoPicture) -> Captioned:
    started = time.monotonic()
    request = CaptionRequest(sampling=SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0))
    content = await asyncio.to_thread(picture.path.read_bytes)
    submitted = await client.submit(content, request, key=f"demo-{uuid.uuid4().hex}")
    record = await client.wait(submitted.record.job_id)
    return Captioned(picture, record, time.monotonic() - started)


def _table(captioned: list[Captioned]) -> Table:
    table = plain_table("picture", "expected", "is", "caption", "seconds", no_wrap=False)
    for job in captioned:
        table.add_row(job.picture.name, *_verdict(job), Text(_printable(job.caption)), f"{job.seconds:.2f}")
    return table


def _verdict(job: Captioned) -> tuple[Text, Text]:
    """Return what was expected of a picture, where anything was, and whether it came true."""
    if job.picture.expected is None:
        return Text("(a photograph)", style="dim"), Text("")
    return Text(job.picture.expected), Text("right", style="green") if job.is_right else Text("wrong", style="red")


def _printable(text: str) -> str:
    """Replace what would move a terminal's cursor: a model may say anything."""
    return "".join(character if character.isprintable() else " " for character in text).strip()
