"""A table captioned while client, gateway and a stage are killed: each row once, in order, with its own caption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.table_drill import run


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_each_row_is_there_once_whoever_dies(tmp_path: Path) -> None:
    seen = await run(tmp_path, 900)
    assert seen["exit_code"] == 0, (tmp_path / "client.log").read_text()[-2000:]
    assert (seen["num_once"], seen["num_missing"], seen["num_out_of_order"], seen["num_wrong"]) == (900, 0, 0, 0)
    assert len(seen["killed_at"]) == 3
    assert seen["num_captions"] > 1
