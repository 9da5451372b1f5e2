"""The servers' configurations, made of `subject_table` and `key_table`: NATS' users with their rights, Redis' ACL file.

A server without them lets everybody do everything; with them, whoever has no secret can do nothing at all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from broker_pipeline import subjects
from broker_pipeline.security.certificates import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from broker_pipeline.security.key_table import ALL_COMMANDS, KEYS, WORKER_COMMANDS
from broker_pipeline.security.roles import ANY, LOCAL_HOST, WORKERS, Role, Scope, inbox_prefix, redis_user
from broker_pipeline.security.subject_table import SUBJECTS, SubjectRow

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
ADMIN = "admin"
"""User of `up`, which may do everything to the servers that it started."""
_DEFAULT_USER = "user default off ~* &* +@all"
"""Nobody may be this user, but Redis is, while it reads its append-only file: many releases leave out transactions, and
so what scripts wrote, with commands that the user may not run (redis/redis#14541, valkey-io/valkey#3983)."""


@dataclass(frozen=True, slots=True)
class Rights:
    """All that one role on one host may do, as the servers know it: patterns, with wildcards."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    add: tuple[str, ...]
    """Sets that names may be added to, of those that it may not write."""
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """One role on one host, as the servers know it: nothing in here is secret."""

    role: Role
    host: str
    nkey: str
    """Public key."""
    password_sha256: str

    def rights(self, namespace: str) -> Rights:
        """Return what it may do."""
        return rights_of(self.role, self.host, namespace)


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """Whom a server lets in, to do what."""

    users: Sequence[User]
    namespace: str
    admin_password: str = field(default="", repr=False)
    """Of `admin`, who may do everything; nobody is that without one."""

    def nats_authorization(self) -> str:
        """Return the block of NATS' configuration that lets these users in, and nobody else."""
        entries = [_nats_user(user, self.namespace) for user in self.users]
        if self.admin_password:
            entries.append(f"    {{user: {ADMIN}, password: {_quoted(self.admin_password)}}}")
        # Without anybody in it, the block would let everybody in.
        entries = entries or [f"    {{user: nobody, password: {_quoted(secrets.token_urlsafe(32))}}}"]
        return "authorization {\n  users = [\n" + "\n".join(entries) + "\n  ]\n}\n"

    def redis_users(self) -> str:
        """Return the ACL file that lets these users in, and nobody else."""
        lines = [_DEFAULT_USER, *(_redis_user(user, self.namespace) for user in self.users)]
        if self.admin_password:
            lines.append(f"user {ADMIN} on #{sha256(self.admin_password)} ~* &* +@all")
        return "\n".join(lines) + "\n"


def nats_config(access: ServerAccess, servers_at: str) -> str:
    """Return the whole configuration of a NATS server; `servers_at` is where its host has these files."""
    return f"""\
# Made by `broker-pipeline secrets`: changes are lost when it runs again.
listen: "0.0.0.0:4222"
http: "127.0.0.1:8222"
server_name: "broker-pipeline"
max_payload: {MAX_PAYLOAD_BYTES}
max_pending: {512 * 1024 * 1024}
write_deadline: "60s"
tls {{
  cert_file: "{servers_at}/{CERTIFICATE_FILE}"
  key_file: "{servers_at}/{KEY_FILE}"
  ca_file: "{servers_at}/{AUTHORITY_FILE}"
  verify: true
}}
jetstream {{
  store_dir: "/data/jetstream"
  # Each write is synced to the disk before it is acknowledged: an acknowledged job survives a power cut.
  sync_interval: always
}}
{access.nats_authorization()}"""


def redis_config(servers_at: str) -> str:
    """Return the whole configuration of a Redis for a pipeline; `servers_at` is where its host has these files."""
    return f"""\
# Made by `broker-pipeline secrets`: changes are lost when it runs again.
port 0
tls-port 6379
tls-cert-file {servers_at}/{CERTIFICATE_FILE}
tls-key-file {servers_at}/{KEY_FILE}
tls-ca-cert-file {servers_at}/{AUTHORITY_FILE}
tls-replication yes
dir /data
aclfile {servers_at}/users.acl
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
hash-max-listpack-value 4096
"""


def rights_of(role: Role, host: str, namespace: str) -> Rights:
    """Return what the servers are to allow a role on a host in a namespace."""
    everywhere = Scope(namespace, ANY)
    own = everywhere if host == LOCAL_HOST else Scope(namespace, host)
    inbox = f"{inbox_prefix(role, host)}.>"
    publish = [inbox, subjects.bulk(inbox)]
    subscribe = [inbox, subjects.bulk(inbox)]
    for row in SUBJECTS:
        sends, hears = (own, everywhere) if row.is_of_sender else (everywhere, own)
        if role in row.publish:
            publish += _both_ways(row, sends)
        if role in row.subscribe:
            subscribe += _both_ways(row, hears)
    read = [name for row in KEYS if role in row.read for name in row.names(own if row.of_host else everywhere)]
    write = [name for row in KEYS if role in row.write for name in row.names(own if row.of_host else everywhere)]
    add = [name for row in KEYS if role in row.add for name in row.names(everywhere)]
    commands = WORKER_COMMANDS if role in WORKERS else ALL_COMMANDS
    return Rights(tuple(publish), tuple(subscribe), tuple(read), tuple(write), tuple(add), commands)


def sha256(password: str) -> str:
    """Return a password as an ACL file has it."""
    return hashlib.sha256(password.encode()).hexdigest()


def _nats_user(user: User, namespace: str) -> str:
    rights = user.rights(namespace)
    publish, subscribe = (orjson.dumps(names).decode() for names in (rights.publish, rights.subscribe))
    return (
        f"    # {user.role} on {user.host}\n"
        f"    {{nkey: {user.nkey}, permissions: {{publish: {{allow: {publish}}}, subscribe: {{allow: {subscribe}}}}}}}"
    )


def _redis_user(user: User, namespace: str) -> str:
    rights = user.rights(namespace)
    words = [*(f"~{key}" for key in rights.write), *(f"%R~{key}" for key in rights.read)]
    words += ["resetchannels", "-@all", *(f"+{name}" for name in rights.commands)]
    words += [f"({' '.join([*(f'~{key}' for key in rights.add), '+sadd'])})"] if rights.add else []
    return f"user {redis_user(user.role, user.host)} on #{user.password_sha256} {' '.join(words)}"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def _both_ways(row: SubjectRow, at: Scope) -> Iterator[str]:
    for name in row.names(at):
        yield name
        if row.is_message:
            yield subjects.bulk(name)
