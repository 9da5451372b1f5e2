"""The token of `up`, and who finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline.client.operator_token import make_token, noted_gateways, token_for

URL = "http://127.0.0.1:65001"


@pytest.mark.parametrize("asked", [URL, "http://localhost:65001/", "http://[::1]:65001", "http://0.0.0.0:65001"])
def test_it_is_found_while_the_gateway_runs(tmp_path: Path, asked: str) -> None:
    path = make_token(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    with noted_gateways([URL], path):
        assert token_for(asked) == path.read_text()
        assert token_for("http://127.0.0.1:65002") is None
        assert token_for("http://10.0.0.1:65001") is None
    assert token_for(asked) is None
    assert len(path.read_text()) >= 43


def test_each_start_makes_another_and_the_latest_at_an_address_counts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = make_token(tmp_path / "a")
    before = first.read_text()
    with noted_gateways([URL], first):
        with noted_gateways([URL], second := make_token(tmp_path / "b")):
            assert token_for(URL) == second.read_text()
        assert make_token(tmp_path / "a").read_text() != before
    with noted_gateways([URL], first), noted_gateways([URL], second):
        pass
    assert token_for(URL) is None


@pytest.mark.parametrize("url", ["", "http://", "http://[::1", "http://host:99999", "no url"])
def test_what_is_no_url_has_none(url: str) -> None:
    assert token_for(url) is None
