"""What the gateway can be told, and the limits that it holds requests to."""

import ipaddress
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.process.host_room import BASE_FILES, Needs
from broker_pipeline.storage.jobs import MAX_JOBS
from gateway.address_guard import AddressGuard

MIB = 1024 * 1024

Positive = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How slowly a client may send or read: who is slow holds room that others wait for."""

    timeout_s: PositiveSeconds = 300.0
    min_bytes_per_s: Positive = 16 * 1024
    grace_s: PositiveSeconds = 10.0
    is_file: bool = False
    """Whether a body may take as long as its size asks for; `timeout_s` is then the longest pause."""

    def allowed_s(self, num_bytes: int) -> float:
        """Return for how long one may wait until there is more than so many bytes."""
        earned_s = self.grace_s + num_bytes / self.min_bytes_per_s
        return earned_s if self.is_file else min(self.timeout_s, earned_s)

    def counted_s(self, waited_s: float, num_bytes: int) -> float:
        """Return for how long one has waited, as it counts: whoever was fast may pause for `timeout_s`, not longer."""
        return max(waited_s, self.allowed_s(num_bytes) - self.timeout_s)

    def describe(self) -> str:
        """Say what is asked of a body."""
        rate = f"{self.min_bytes_per_s} bytes/s once {self.grace_s:g} s are over"
        return f"it may {'pause' if self.is_file else 'take'} {self.timeout_s:g} s, at no less than {rate}"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much one request may bring, and how many requests may bring it at once."""

    max_body_bytes: Positive = 64 * MIB
    pictures: PictureRule = PictureRule()
    """The most that is accepted, whatever more vision workers announce."""
    max_images: Positive = 64
    """Images and video frames of one job together."""
    max_uploads: Positive = 16
    """Bodies read at the same time; memory is at most this times `max_body_bytes`."""
    upload_timeout_s: PositiveSeconds = 300.0
    """For one body to arrive; of a file, for the longest pause."""
    min_upload_bytes_per_s: Positive = 16 * 1024
    """Once `Pace.grace_s` have passed; of what a client reads as well."""
    max_streams: Positive = 2000
    """Event streams and long polls open at the same time; those of one client are half of that."""
    max_tokens_in_all: Positive | None = None
    """Prompt and output of a job together, as the conductor announces; None: nobody knows."""
    vocab_size: Positive | None = None
    """Tokens of the model, as the conductor announces; None: nobody knows."""
    model: str | None = None
    """The model's name, as the conductor announces; None: nobody knows."""
    default_max_tokens: Annotated[int, Meta(ge=0)] = 0
    """Output limit of jobs that ask for none, as the conductor announces; 0: nobody knows."""
    longest_token_bytes: Annotated[int, Meta(ge=0)] = 0
    """Most bytes of text that a token of the model stands for, as the conductor announces; 0: nobody knows."""

    @property
    def pace(self) -> Pace:
        """How slowly a body may arrive."""
        return Pace(timeout_s=self.upload_timeout_s, min_bytes_per_s=self.min_upload_bytes_per_s)


class FetchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How images are fetched from URLs."""

    timeout_s: PositiveSeconds = 20.0
    """For one image, all redirects together."""
    max_redirects: Annotated[int, Meta(ge=0, le=20)] = 5
    allow_private_urls: tuple[str, ...] = ()
    """Networks (CIDR) that are reachable although they are not public."""
    media_dir: str | None = None
    """Directory below which `file:` URLs may lead."""


class BatchLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How large files and batches may be, and how much of them is under way."""

    max_file_bytes: Positive = 1024 * MIB
    max_requests: Positive = 1_000_000
    """Of one batch."""
    max_inline_requests: Positive = 50_000
    """Of one batch: those that have pictures in them, and do not only say where they are."""
    max_line_bytes: Positive = 16 * MIB
    jobs_in_flight: Positive = 256
    """Jobs of one batch that wait or run at a time."""
    max_running: Positive = 4
    """Batches that one process carries on at a time."""
    lease_s: PositiveSeconds = 10.0
    """After so long others take the batches of a gateway that died."""


class AccessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may use the gateway."""

    operator_token_file: str | None = None
    """File with a token that may do everything, also while Redis is away."""
    is_insecure: bool = False
    """Whether others may reach the gateway, and use it, while there are no keys."""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    """As in `WebPages`."""


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who is told of batches that end: both, or nobody."""

    url: str | None = None
    secret_file: str | None = None
    """File with `whsec_…`, which signs what is told."""
    of_tenants: tuple[tuple[str, str, str], ...] = ()
    """Tenants that have others: name, URL and file."""


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the gateway is told at its start."""

    common: CommonSettings = CommonSettings()
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    queue_max_jobs: Positive = MAX_JOBS
    """Jobs that may wait; what comes beyond is refused."""
    queue_max_bytes: Positive | None = None
    """Room for waiting jobs, without their images; None: what JetStream gives, up to 1 GiB."""
    media_max_bytes: Positive | None = None
    """Room for the images of unfinished jobs; None: what JetStream gives, up to 10 GiB."""
    files_max_bytes: Positive | None = None
    """Room for files of batches; None: what JetStream gives, up to 10 GiB."""
    limits: Limits = Limits()
    """Of all processes together."""
    batches: BatchLimits = BatchLimits()
    num_processes: Positive = 1
    """Processes that share the port."""
    process_index: Annotated[int, Meta(ge=0)] | None = None
    """Which of them this one is; None: the only one, or their supervisor."""
    fetch: FetchSettings = FetchSettings()
    access: AccessSettings = AccessSettings()
    webhook: WebhookSettings = WebhookSettings()

    @property
    def shares_port(self) -> bool:
        """Whether this is one of several processes on the port."""
        return self.process_index is not None

    @property
    def name(self) -> str:
        """What logs, metrics and the NATS server call this process."""
        return f"gateway-{self.process_index}" if self.shares_port else "gateway"

    @property
    def keeps_house(self) -> bool:
        """Whether this process sweeps; of several, one."""
        return self.process_index in {None, 0}

    @property
    def needs(self) -> Needs:
        """What this process needs of its host: each stream and upload is a connection."""
        limits = self.own_limits
        return Needs(num_files=BASE_FILES + limits.max_streams + 2 * limits.max_uploads)

    @property
    def own_limits(self) -> Limits:
        """The limits of this process: its share of what all may hold at once."""
        if not self.shares_port:
            return self.limits
        shares = {name: -(-getattr(self.limits, name) // self.num_processes) for name in ("max_uploads", "max_streams")}
        return msgspec.structs.replace(self.limits, **shares)


def address_guard(settings: FetchSettings) -> AddressGuard:
    """Build the guard; a network that cannot be parsed is a `ConfigurationError`."""
    try:
        return AddressGuard(tuple(ipaddress.ip_network(network) for network in settings.allow_private_urls))
    except ValueError as error:
        raise ConfigurationError(f"--allow-private-urls: {error}", field="allow_private_urls") from error
