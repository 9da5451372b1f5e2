"""Keys from the command line, in a real Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker_pipeline.client.operator_token import REDIS_URL_FILE
from broker_pipeline.errors import ConfigurationError, KeyNotFoundError
from broker_pipeline.state.access.gateway_keys import hash_of
from broker_pipeline.tools.operate.keys_command import command


class Keys:
    """`broker-pipeline keys` against one Redis."""

    def __init__(self, *where: str) -> None:
        self._where = where

    def __call__(self, *arguments: str) -> str:
        answer = CliRunner().invoke(command, [*arguments, *self._where], catch_exceptions=True)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        assert answer.exit_code == 0, answer.output
        return answer.output.strip()

    def list(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("list", "--json").splitlines()]


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Keys:
    return Keys("--redis-url", redis_url, "--namespace", namespace)


def test_a_key_is_made_shown_without_its_secret_and_withdrawn(keys: Keys) -> None:
    assert keys("list") == "there are no keys"
    secret = keys("create", "alice", "--scope", "submit", "--requests-per-minute", "60", "--max-queued", "9")
    (shown,) = keys.list()
    assert (shown["id"], shown["tenant"], shown["scopes"]) == (hash_of(secret)[:12], "alice", ["submit"])
    assert shown["limits"] == {"requests_per_minute": 60, "max_queued": 9}
    assert secret not in keys("list")
    assert "alice" in keys("list")
    assert keys("revoke", shown["id"]) == f"{shown['id']} of alice is withdrawn"
    assert keys.list() == []


def test_a_key_has_the_weight_that_it_was_given(keys: Keys) -> None:
    keys("create", "alice")
    keys("create", "bob", "--weight", "2.5")
    assert [key.get("weight", 1.0) for key in keys.list()] == [1.0, 2.5]
    assert "2.5" in keys("list")
    with pytest.raises(AssertionError, match="--weight"):
        keys("create", "carol", "--weight", "0")


def test_a_tenants_keys_go_together_and_others_stay(keys: Keys) -> None:
    for tenant in ("alice", "bob", "alice"):
        keys("create", tenant)
    assert len(keys("revoke", "alice").splitlines()) == 2
    assert [key["tenant"] for key in keys.list()] == ["bob"]
    with pytest.raises(KeyNotFoundError, match="keys belong to: bob"):
        keys("revoke", "alice")
    with pytest.raises(KeyNotFoundError):
        keys("revoke", keys.list()[0]["id"][:4])


@pytest.mark.parametrize("name", ["", "a b", "é", "a" * 65, "a:b"])
def test_a_name_that_no_tenant_can_have_is_refused(keys: Keys, name: str) -> None:
    with pytest.raises(ConfigurationError, match="--tenant"):
        keys("create", name)


def test_the_redis_of_up_is_found_in_its_data_directory(redis_url: str, namespace: str, tmp_path: Path) -> None:
    of_up = Keys("--data-dir", str(tmp_path), "--namespace", namespace)
    with pytest.raises(ConfigurationError, match="runs in"):
        of_up("list")
    (tmp_path / REDIS_URL_FILE).write_text(redis_url)
    of_up("create", "alice")
    assert [key["tenant"] for key in of_up.list()] == ["alice"]
