"""Servers are told of new secrets while they run: old ones are shut out, new ones and other hosts' are let in."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from broker_pipeline.errors import StateDeniedError, SubjectDeniedError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.host_folder import users_in
from broker_pipeline.security.secrets_directory import DirectoryFacts, SecretsDirectory
from broker_pipeline.security.server_configs import ServerAccess
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.server_binaries import find_nats_server
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.wire.transport import Transport


def _access(directory: SecretsDirectory) -> ServerAccess:
    users = [user for host in directory.hosts for user in users_in(directory.host_folder(host))]
    return ServerAccess(users, "bp", admin_password="of-the-test")


async def test_who_has_old_secrets_is_shut_out_and_nobody_else(tmp_path: Path) -> None:
    directory = SecretsDirectory.create(tmp_path / "secrets", DirectoryFacts("bp", str(tmp_path / "secrets/servers")))
    directory.add_host("gpu-1", ("stage",))
    directory.add_host("gpu-2", ("stage",))
    old, other = (Credentials.load(directory.host_folder(host), "stage", "bp") for host in ("gpu-1", "gpu-2"))
    before = _access(directory)
    nats, redis = EmbeddedNats(tmp_path / "nats", access=before), EmbeddedRedis(tmp_path / "redis", access=before)
    async with (
        nats,
        redis,
        Transport.open(nats.url, name="old", credentials=old) as shut_out,
        Transport.open(nats.url, name="other", credentials=other) as kept,
    ):
        directory.rotate("gpu-1")
        new, after = Credentials.load(directory.host_folder("gpu-1"), "stage", "bp"), _access(directory)
        config = nats.directory / "nats-server.conf"
        config.write_text(config.read_text().replace(before.nats_authorization(), after.nats_authorization()))
        nats.kill(signal.SIGHUP)
        (redis.directory / "users.acl").write_text(after.redis_users())
        async with open_redis(redis.admin_url) as admin:
            await admin.execute_command("ACL", "LOAD")
        with pytest.raises(SubjectDeniedError, match=r"the NATS server refused old(-bulk)?: .*Authorization Violation"):
            await asyncio.wait_for(shut_out.wait_failed(), 20)
        with pytest.raises(SubjectDeniedError):
            async with Transport.open(nats.url, name="old again", credentials=old):
                pass
        with pytest.raises(StateDeniedError):
            async with open_redis(redis.url, credentials=old):
                pass
        async with Transport.open(nats.url, name="new", credentials=new), open_redis(redis.url, credentials=new):
            await kept.link.barrier()
            assert kept.counts.num_reconnects == 0


async def test_the_server_reads_the_configuration_that_is_made(tmp_path: Path) -> None:
    directory = SecretsDirectory.create(tmp_path / "secrets", DirectoryFacts("bp", str(tmp_path / "secrets/servers")))
    directory.add_host("hub", ("gateway", "conductor", "operator"))
    process = await asyncio.create_subprocess_exec(
        *(str(find_nats_server()), "-t", "-c", str(directory.path / "servers" / "nats.conf")),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said
