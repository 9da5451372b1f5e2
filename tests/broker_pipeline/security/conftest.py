"""Real servers with the configurations that `secrets` makes, two hosts that have every role, and an admin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio

from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.host_folder import users_in
from broker_pipeline.security.roles import ROLES, Role
from broker_pipeline.security.secrets_directory import DirectoryFacts, SecretsDirectory
from broker_pipeline.security.server_configs import ServerAccess
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis

NAMESPACE = "bp"
HOST, OTHER = "gpu-1", "gpu-10"


@dataclass(frozen=True)
class Guarded:
    """Two servers that let in whom the directory names."""

    directory: SecretsDirectory
    nats: EmbeddedNats
    redis: EmbeddedRedis

    def credentials(self, role: Role, host: str = HOST) -> Credentials:
        return Credentials.load(self.directory.host_folder(host), role, NAMESPACE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory) -> AsyncIterator[Guarded]:
    path: Path = tmp_path_factory.mktemp("guarded")
    directory = SecretsDirectory.create(path / "secrets", DirectoryFacts(NAMESPACE))
    for host in (HOST, OTHER):
        directory.add_host(host, ROLES)
    users = [user for host in (HOST, OTHER) for user in users_in(directory.host_folder(host))]
    access = ServerAccess(users, NAMESPACE, admin_password="of-the-test")
    nats, redis = EmbeddedNats(path / "nats", access=access), EmbeddedRedis(path / "redis", access=access)
    async with nats, redis:
        yield Guarded(directory, nats, redis)
