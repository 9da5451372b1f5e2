"""How long the parts of the gateway's own work take, as its `/metrics` tell.

read ──► the request is read and checked      store ──► NATS and Redis have its job
tell ──► from the arrival of tokens to their being written to the client
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gateway.system_metrics import PREFIX

_HISTOGRAMS = (f"{PREFIX}_submission_seconds", f"{PREFIX}_event_seconds")


async def own_times(url: str) -> Mapping[tuple[str, str], float]:
    """Return the `sum`, in seconds, and the `count` of each part since the gateway at `url` began."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    return {
        (sample.labels.get("part", "tell"), sample.name.rpartition("_")[2]): sample.value
        for family in families
        if family.name in _HISTOGRAMS
        for sample in family.samples
    }


def average_times(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Return seconds on average by part, of what came between two looks; parts of which nothing came are left out."""
    passed = Counter(after)
    passed.subtract(before)
    parts = sorted({part for part, kind in passed if kind == "count" and passed[part, kind] > 0})
    return {part: passed[part, "sum"] / passed[part, "count"] for part in parts}
