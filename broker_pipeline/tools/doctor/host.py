"""What every service looks for at its start: open files, shared memory, room on disks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from broker_pipeline.process.host_room import Found, Needs, RoomNeed, shortages
from broker_pipeline.tools.doctor.finding import Finding, fail, ok
from broker_pipeline.wire.edges.settings import EdgeSettings

_MIB = 2**20


def needs_of(settings: EdgeSettings, model: Path | None) -> Needs:
    """Return what a worker needs, and room where things are written besides."""
    needs = settings.needs
    remedy = "free some"
    rooms = [RoomNeed(Path(tempfile.gettempdir()), 64 * _MIB, 1000, "temporary files", remedy)]
    rooms.append(RoomNeed(Path.home() / ".cache", 64 * _MIB, 1000, "compiled kernels, notes of hashes", remedy))
    if model is not None:
        rooms.append(RoomNeed(model, _MIB, 16, "files that are fetched", remedy))
    return Needs(needs.num_files, (*needs.rooms, *rooms))


def judge_host(needs: Needs, found: Found) -> list[Finding]:
    """Say what there is too little of."""
    lacks = [said.partition(": ") for said in shortages(needs, found)]
    if lacks:
        return [fail("host", what, remedy) for what, _, remedy in lacks]
    rooms = [f"{path} {free[0] / 2**30:.1f} GiB" for path, free in found.free.items() if free]
    return [ok("host", f"{found.num_files} open files; free: {', '.join(rooms)}")]
