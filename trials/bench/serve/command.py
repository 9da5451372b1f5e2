"""`broker-pipeline bench serve`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import uvloop

from broker_pipeline.config import refuse_nan
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.options import POSITIVE, say, unread_option
from trials.bench.report import BenchReport, json_option, save, show_table
from trials.bench.serve.client import open_session, send_all, served_model
from trials.bench.serve.rows import Percentiles, ServeRow, ServeSettings, row_of
from trials.bench.spread import shown
from trials.bench.work import write_pictures

_NUM_PICTURES = 64
_LATENCIES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2EL", "e2el_ms"))


@click.command(name="serve")
@click.option("--url", default="http://127.0.0.1:8080/v1", show_default=True, help="Of the API.")
@click.option("--model", help="To ask for.  [default: the first that the server lists]")
@click.option("--key", envvar="OPENAI_API_KEY", show_envvar=True, help="Of the API.")
@click.option("--num-prompts", default=256, show_default=True, type=POSITIVE, help="Requests in all.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    callback=refuse_nan,
    help="Requests per second, at random times.  [default: all at once]",
)
@click.option("--concurrency", "num_in_flight", type=POSITIVE, help="At most so many at once.  [default: no bound]")
@click.option("--prompt", default="Describe this image in one sentence.", show_default=True)
@click.option(
    "--picture-side", default=448, show_default=True, type=click.IntRange(min=0), help="Pixels; 0 for no picture."
)
@click.option("--output-tokens", "num_output_tokens", default=64, show_default=True, type=POSITIVE)
@unread_option
@click.option("--seed", default=0, show_default=True, type=int, help="Of arrivals and pictures.")
@json_option
def command(*, url: str, model: str | None, key: str | None, json_path: Path | None, **options: Any) -> None:
    """Measure an OpenAI-compatible server: throughput, time to first token, time per token.

    Streams chat completions with a picture each from a server that runs already: `broker-pipeline up`, or any other.
    Metrics have the names and meanings of vLLM's `bench serve`; with `--rate` requests arrive as a Poisson process.

    \b
    Examples:
      broker-pipeline bench serve --rate 20 --num-prompts 500
      broker-pipeline bench serve --url http://127.0.0.1:8000/v1 --concurrency 64 --json vllm.json
    """
    row, settings = uvloop.run(_measure(url.rstrip("/"), model, key, options))
    _show(row)
    machine = MachineFacts.read()
    save(
        BenchReport(
            bench="serve", machine=machine, settings={**options, "url": url, "model": settings.model}, rows=[row]
        ),
        json_path,
    )
    if row.failed:
        raise click.exceptions.Exit(1)


async def _measure(
    url: str, model: str | None, key: str | None, options: dict[str, Any]
) -> tuple[ServeRow, ServeSettings]:
    async with open_session(key) as session:
        settings = ServeSettings(url=url, model=model or await served_model(session, url), **options)
        pictures = _pictures(settings)
        tenth = max(1, settings.num_prompts // 10)

        def tell(num_done: int) -> None:
            if num_done % tenth == 0:
                say(f"{num_done} of {settings.num_prompts} requests have ended")

        return row_of(await send_all(session, settings, pictures, tell)), settings


def _pictures(settings: ServeSettings) -> list[bytes]:
    if not settings.picture_side:
        return []
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as directory:
        count = min(settings.num_prompts, _NUM_PICTURES)
        names = write_pictures(Path(directory), "serve", count, settings.picture_side, settings.seed)
        return [(Path(directory) / name).read_bytes() for name in names]


def _show(row: ServeRow) -> None:
    facts = [
        ("successful requests", row.completed),
        ("failed requests", ", ".join(f"{count} x {what}" for what, count in row.failed.items()) or 0),
        ("duration, s", shown(row.duration_s)),
        ("input tokens", row.total_input_tokens),
        ("output tokens", row.total_output_tokens),
        ("requests/s", shown(row.request_throughput)),
        ("output tokens/s", shown(row.output_throughput)),
    ]
    show_table("bench serve", facts, [("", lambda fact: fact[0]), ("all", lambda fact: fact[1])])
    latencies = [(name, getattr(row, field)) for name, field in _LATENCIES]
    columns = [
        (f"{field}, ms", lambda pair, field=field: shown(getattr(pair[1], field)))
        for field in Percentiles.__struct_fields__
    ]
    show_table("latency", latencies, [("", lambda pair: pair[0]), *columns])
