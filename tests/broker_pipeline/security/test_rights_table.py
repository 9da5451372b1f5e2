"""The table of rights, and what is made of it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from broker_pipeline.security.key_table import ALL_COMMANDS, KEYS, WORKER_COMMANDS
from broker_pipeline.security.server_configs import ServerAccess, rights_of
from broker_pipeline.security.subject_table import SUBJECTS
from tests.kit.rights_table import OPERATIONS, in_document, tables

_CALL = re.compile(r"redis\.p?call\((.*?)[,)]")
_WORD = re.compile(r"'([A-Z]+)'")


@pytest.mark.parametrize("mark", tables())
def test_the_manual_shows_the_table(mark: str) -> None:
    """Else: `python -m tests.kit.rights_table`."""
    assert in_document(OPERATIONS.read_text(), mark) == tables()[mark]


def test_every_command_of_every_script_is_allowed() -> None:
    scripts = files("broker_pipeline.state").joinpath("scripts")
    by_folder = {
        folder.name: {
            word.lower()
            for script in folder.iterdir()
            for call in _CALL.findall(script.read_text())
            for word in _WORD.findall(call)
        }
        for folder in scripts.iterdir()
        if folder.is_dir()
    }
    assert by_folder["jobs"]
    assert set().union(*by_folder.values()) <= set(ALL_COMMANDS)
    assert set(WORKER_COMMANDS) <= set(ALL_COMMANDS)


def test_every_row_is_for_somebody() -> None:
    assert all(row.publish or row.subscribe for row in SUBJECTS)
    assert all(row.read or row.write for row in KEYS)


def test_hosts_have_nothing_of_their_own_in_common() -> None:
    one, other = (rights_of("stage", host, "bp") for host in ("gpu-1", "gpu-10"))
    assert set(one.subscribe).isdisjoint(other.subscribe)
    assert "bp:*:worker:gpu-1_*" in one.write
    assert set(one.write) ^ set(other.write) == {"bp:*:worker:gpu-1_*", "bp:*:worker:gpu-10_*"}


def test_without_any_host_nobody_gets_in() -> None:
    access = ServerAccess((), "bp")
    assert "user: nobody" in access.nats_authorization()
    assert access.redis_users() == "user default off ~* &* +@all\n"
