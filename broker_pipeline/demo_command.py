"""The command `broker-pipeline demo`: a whole pipeline in one command, and nothing left behind."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker_pipeline import exit_codes
from broker_pipeline.caption_client import CaptionClient
from broker_pipeline.caption_request import CaptionRequest
from broker_pipeline.cuts import parse_cut
from broker_pipeline.demo_artifact import make_artifact
from broker_pipeline.demo_pictures import DemoPicture, photographs, scenes, trained_model
from broker_pipeline.local import LocalCluster
from broker_pipeline.local_plan import LocalSettings
from broker_pipeline.local_run import run_cluster
from broker_pipeline.local_view import LiveView, PlainView, local_view
from broker_pipeline.messages import JobRecord, SamplingParams
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.status_client import fetch_status
from broker_pipeline.status_view import describe_workers

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

    Takes under a minute and cleans up after itself. The model is tiny, so that no GPU and no download is needed.
    """
    sys.exit(asyncio.run(_demo(Console(highlight=False))))


async def _demo(console: Console) -> int:
    checkpoint, pictures = trained_model(), scenes()
    is_trained = checkpoint is not None and bool(pictures)
    if not is_trained:
        checkpoint, pictures = None, photographs()
    view = local_view(console)
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-demo-") as directory:
        view.say("making a small model of random weights" if checkpoint is None else "exporting the small model")
        settings = _settings(Path(directory), await make_artifact(Path(directory), checkpoint))
        shown = _Shown(console, view, pictures)
        code = await run_cluster(settings, view, shown.caption_all)
    if code != exit_codes.OK or shown.captioned is None:
        return code or exit_codes.INTERRUPTED
    return shown.summary(is_trained=is_trained)


def _settings(directory: Path, artifact: Path) -> LocalSettings:
    """Three stages, one of them cut inside the first three layers: their owners get visual rows of their own."""
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
        async with CaptionClient.open(cluster.gateway_url, patience_s=60) as client, asyncio.TaskGroup() as tasks:
            jobs = [tasks.create_task(_caption(client, picture)) for picture in self._pictures]
        self._seconds = time.monotonic() - started
        self._workers = describe_workers(await fetch_status(cluster.gateway_url))
        self.captioned = [job.result() for job in jobs]
        self._view.say("done; stopping")

    def summary(self, *, is_trained: bool) -> int:
        """Print captions, timings and workers; returns the exit code."""
        assert self.captioned is not None
        self._console.print(_table(self.captioned, is_trained=is_trained))
        num_tokens = sum(job.record.result.usage.num_output_tokens for job in self.captioned if job.record.result)
        num_done = sum(job.record.status == "succeeded" for job in self.captioned)
        self._console.print(
            f"\n{num_done} of {len(self.captioned)} captioned, {num_tokens} tokens, in {self._seconds:.2f} s",
            markup=False,
        )
        self._console.print(f"\nworkers that took part:\n{self._workers}", markup=False)
        if is_trained:
            num_right = sum(job.is_right for job in self.captioned)
            self._console.print(f"\n{num_right} of {len(self.captioned)} captions are the expected ones")
        else:
            self._console.print("\nThe captions are noise: this model's weights are random. Every other part is real.")
        return exit_codes.OK if num_done == len(self.captioned) else exit_codes.SOME_FAILED


async def _caption(client: CaptionClient, picture: DemoPicture) -> Captioned:
    started = time.monotonic()
    request = CaptionRequest(sampling=SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0))
    content = await asyncio.to_thread(picture.path.read_bytes)
    submitted = await client.submit(content, request, key=f"demo-{uuid.uuid4().hex}")
    record = await client.wait(submitted.record.job_id)
    return Captioned(picture, record, time.monotonic() - started)


def _table(captioned: list[Captioned], *, is_trained: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("picture", no_wrap=True)
    if is_trained:
        table.add_column("expected")
    table.add_column("caption")
    table.add_column("seconds", justify="right")
    for job in captioned:
        expected = [Text(job.picture.expected or "")] if is_trained else []
        caption = Text(_printable(job.caption), style="green" if job.is_right else "")
        table.add_row(job.picture.name, *expected, caption, f"{job.seconds:.2f}")
    return table


def _printable(text: str) -> str:
    """Random weights say anything, also what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text).strip()
