"""The command `broker-pipeline gateway`."""

from __future__ import annotations

from typing import Any

import click

from broker_pipeline.config import PathType, common_options, given_flags, option, parse_settings, split_common
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.security.credentials import gateway_key_file
from broker_pipeline.service import ServiceContext, run_and_exit
from gateway.app import serve
from gateway.processes import supervise
from gateway.settings import (
    MIB,
    AccessSettings,
    BatchLimits,
    FetchSettings,
    GatewaySettings,
    Limits,
    WebhookSettings,
    address_guard,
)

_POSITIVE = click.IntRange(min=1)
_PICTURES = PictureRule()
_SAME_NAMES = ("max_images", "max_uploads", "max_streams", "upload_timeout_s", "min_upload_bytes_per_s")


@click.command()
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@option("--processes", default=1, type=_POSITIVE, help="Processes that share the port.")
@option("--process-index", type=click.IntRange(min=0), hidden=True, help="Which of them this is.")
@option("--max-queued-jobs", default=1_000_000, type=_POSITIVE, help="Jobs in the queue before new ones get a 429.")
@option(
    "--max-queue-mb", default=None, type=_POSITIVE, help="JetStream room for the queue, in MiB.  [default: up to 1024]"
)
@option(
    "--max-media-mb",
    default=None,
    type=_POSITIVE,
    help="JetStream room for images of unfinished jobs, in MiB.  [default: up to 10240]",
)
@option("--max-body-mb", default=64, type=_POSITIVE, help="Largest request body, in MiB.")
@option(
    "--max-image-mb",
    default=_PICTURES.max_bytes // MIB,
    type=_POSITIVE,
    help="Largest image file, in MiB; vision workers may accept less.",
)
@option(
    "--max-image-megapixels",
    default=_PICTURES.max_pixels // 1_000_000,
    type=_POSITIVE,
    help="Largest image, in millions of pixels; vision workers may accept less.",
)
@option("--max-images", default=64, type=_POSITIVE, help="Most images and video frames of one job.")
@option(
    "--max-uploads",
    default=16,
    type=_POSITIVE,
    help="Largest request bodies held in memory at the same time; smaller ones take what they have.",
)
@option(
    "--upload-timeout-s",
    default=300.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for a body to arrive.",
)
@option(
    "--min-upload-bytes-per-s",
    default=16 * 1024,
    type=_POSITIVE,
    help="Least rate of a body, from its first ten seconds on.",
)
@option("--max-streams", default=2000, type=_POSITIVE, help="Event streams and long polls open at the same time.")
@option(
    "--max-files-mb",
    default=None,
    type=_POSITIVE,
    help="JetStream room for files of batches, in MiB.  [default: up to 10240]",
)
@option("--max-file-mb", default=1024, type=_POSITIVE, help="Largest file, in MiB.")
@option("--max-batch-requests", default=1_000_000, type=_POSITIVE, help="Most requests of one batch.")
@option(
    "--max-batch-inline-requests",
    default=50_000,
    type=_POSITIVE,
    help="Most requests of one batch that have their pictures in them, as data: URLs.",
)
@option("--max-batch-line-mb", default=16, type=_POSITIVE, help="Longest request of a batch, in MiB.")
@option(
    "--batch-jobs-in-flight", default=256, type=_POSITIVE, help="Jobs of one batch that wait or run at the same time."
)
@option(
    "--batch-lease-s",
    default=10.0,
    type=click.FloatRange(min=0.5),
    help="Seconds after which others take the batches of a gateway that died.",
)
@option("--max-running-batches", default=4, type=_POSITIVE, help="Batches that a process carries on at the same time.")
@option(
    "--fetch-timeout-s", default=20.0, type=click.FloatRange(min=0, min_open=True), help="Seconds for one image URL."
)
@option(
    "--media-dir",
    default=None,
    type=PathType(exists=True, file_okay=False),
    help="Directory whose pictures and videos requests may name by file: URLs; everybody who may submit may name any.",
)
@option("--max-redirects", default=5, type=click.IntRange(0, 20), help="Redirects followed for one image URL.")
@option(
    "--allow-private-urls",
    multiple=True,
    metavar="CIDR",
    help="Network that image URLs and the webhook may lead to although it is not public, such as 10.1.0.0/16. "
    "May be repeated.",
)
@option("--webhook-url", default=None, metavar="URL", help="URL that is told of each batch that ends, as OpenAI does.")
@option(
    "--webhook-secret-file",
    default=None,
    type=PathType(dir_okay=False),
    help="File with whsec_ and 24 random bytes or more in base64: what the webhook's signatures are made with.",
)
@option(
    "--tenant-webhook",
    multiple=True,
    metavar="TENANT,URL,FILE",
    help="Webhook of a tenant's batches in place of --webhook-url, and the file with its secret. May be repeated.",
)
@option(
    "--operator-token-file",
    default=None,
    type=PathType(dir_okay=False),
    help="File with a token of 32 characters or more that allows everything, beside the keys that Redis holds.  "
    "[default: gateway.key of --secrets]",
)
@option(
    "--insecure",
    is_flag=True,
    help="Serve everybody who reaches --host, as long as there are no keys: submit jobs, and see those of others.",
)
@option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name by which browsers and clients without a key may call this gateway; * for any. Addresses, localhost and "
    "this machine's own name need not be said. May be repeated.",
)
@option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Site whose web pages may use this gateway, such as https://app.example.com (CORS). May be repeated.",
)
@common_options
def command(**options: Any) -> None:
    """Serve the HTTP API: accept jobs, answer for them, stream their tokens.

    Needs NATS with JetStream and Redis. Any number of gateways may run side by side: each answers for every job.
    Beyond 127.0.0.1 it wants keys (`broker-pipeline keys create NAME`), or --insecure.
    With --processes, one address is served by several processes: this one starts them, and starts again what dies.

    \b
    Example:
      broker-pipeline gateway --nats-url tls://broker --redis-url rediss://broker --secrets SECRETS --host 0.0.0.0
      curl -H "Authorization: Bearer $KEY" -F image=@photo.jpg http://127.0.0.1:8080/v1/jobs
    """
    settings = gateway_settings(options)
    flags = given_flags(click.get_current_context())
    has_children = settings.num_processes > 1 and settings.process_index is None

    async def main(context: ServiceContext) -> None:
        await (supervise(context, settings, flags) if has_children else serve(context, settings))

    run_and_exit(settings.name, main, settings.common, settings.needs)


def gateway_settings(options: dict[str, Any]) -> GatewaySettings:
    """Turn the command's options into settings; raises `ConfigurationError`."""
    common, rest = split_common(options)
    limits = {
        "max_body_bytes": rest["max_body_mb"] * MIB,
        "pictures": {"max_bytes": rest["max_image_mb"] * MIB, "max_pixels": rest["max_image_megapixels"] * 1_000_000},
        **{name: rest[name] for name in _SAME_NAMES},
    }
    fetch = {
        "timeout_s": rest["fetch_timeout_s"],
        "max_redirects": rest["max_redirects"],
        "media_dir": rest["media_dir"],
        "allow_private_urls": tuple(rest["allow_private_urls"]),
    }
    access = {
        "operator_token_file": rest["operator_token_file"] or gateway_key_file(common.secrets),
        "is_insecure": rest["insecure"],
        "allowed_hosts": tuple(name.lower() for name in rest["allow_host"]),
        "allowed_origins": tuple(origin.lower().rstrip("/") for origin in rest["allow_origin"]),
    }
    batches = {
        "max_file_bytes": rest["max_file_mb"] * MIB,
        "max_requests": rest["max_batch_requests"],
        "max_inline_requests": rest["max_batch_inline_requests"],
        "max_line_bytes": rest["max_batch_line_mb"] * MIB,
        "jobs_in_flight": rest["batch_jobs_in_flight"],
        "max_running": rest["max_running_batches"],
        "lease_s": rest["batch_lease_s"],
    }
    settings = GatewaySettings(
        common=common,
        host=rest["host"],
        port=rest["port"],
        num_processes=rest["processes"],
        process_index=rest["process_index"],
        queue_max_jobs=rest["max_queued_jobs"],
        queue_max_bytes=_mebibytes(rest["max_queue_mb"]),
        media_max_bytes=_mebibytes(rest["max_media_mb"]),
        files_max_bytes=_mebibytes(rest["max_files_mb"]),
        limits=parse_settings(Limits, limits),
        batches=parse_settings(BatchLimits, batches),
        fetch=parse_settings(FetchSettings, fetch),
        access=parse_settings(AccessSettings, access),
        webhook=parse_settings(
            WebhookSettings,
            {
                "url": rest["webhook_url"],
                "secret_file": rest["webhook_secret_file"],
                "of_tenants": [_tenant_webhook(text) for text in rest["tenant_webhook"]],
            },
        ),
    )
    address_guard(settings.fetch)
    return settings


def _tenant_webhook(text: str) -> list[str]:
    tenant, _, rest = text.partition(",")
    url, _, path = rest.rpartition(",")  # URLs may have commas
    if not (tenant and url and path):
        raise ConfigurationError(f"--tenant-webhook takes TENANT,URL,FILE, not {text!r}", field="tenant_webhook")
    return [tenant, url, path]


def _mebibytes(count: int | None) -> int | None:
    return None if count is None else count * MIB
