"""A checkpoint on the Hugging Face hub, fetched shard by shard while it is exported.

Headers come first, by small range requests, so that everything which can be wrong with a checkpoint is known before
any of its gigabytes is fetched. Each shard is fetched when the first artifact file needs it and removed when none does
any more: the disk holds the artifact and a few shards, not two copies of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from broker_pipeline.errors import HubError
from broker_pipeline.model_facts import SIDE_FILES
from export.source.checkpoint import (
    CONFIG_FILE,
    SourceFile,
    merge_headers,
)
from export.source.revisions import HubReference
from export.source.shard import Shard, SourceTensor
from export.source.weight_listing import INDEX_FILE, check_no_adapter, has_index, weight_file_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Shards on the disk at once, at most about: one that is being used up, one that is being fetched.
_NUM_STAGED_SHARDS = 2


class HubCheckpoint:
    """A repository at one commit. Small files go through the hub's own cache, shards into the export's workspace.

    Raises:
        HubError: huggingface_hub is not installed, or the hub did not give what was asked for.
        CheckpointError: index and shards differ.
    """

    def __init__(self, reference: HubReference) -> None:
        self._api = _hub_api()
        self._repo = reference.repo
        with _hub_errors(f"{reference.repo}@{reference.revision}"):
            info = self._api.model_info(self._repo, revision=reference.revision, files_metadata=True)
        # A branch may move while shards are fetched; its commit does not.
        self._commit = str(info.sha)
        self.source: str | None = f"{self._repo}@{self._commit}"
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        names = {name for name in sizes if "/" not in name}
        check_no_adapter(names)
        self.config_json = self.read_side_file(CONFIG_FILE)
        self.side_files = tuple(name for name in SIDE_FILES if name in sizes)
        index = self.read_side_file(INDEX_FILE) if has_index(names) else None
        shards = weight_file_names(names, index)
        self.tensors = merge_headers(self._headers(shards), index)
        self.files = tuple(SourceFile(name, sizes.get(name, 0), self._commit) for name in shards)
        self.staging_bytes = _NUM_STAGED_SHARDS * max((file.size_bytes for file in self.files), default=0)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def read_side_file(self, name: str) -> bytes:
        """Return a small file's content."""
        with _hub_errors(f"{self._repo}@{self._commit}, {name}"):
            return Path(self._api.hf_hub_download(self._repo, name, revision=self._commit)).read_bytes()

    def opened(self, file: str, staging: Path) -> AbstractContextManager[Shard]:
        """Fetch a shard into `staging`, unless it is there (an interrupted fetch goes on), and open it."""
        with self._locks[file], _hub_errors(f"{self.source}, {file}"):
            path = self._api.hf_hub_download(self._repo, file, revision=self._commit, local_dir=staging)
        return Shard(Path(path), file)

    def release(self, file: str, staging: Path) -> None:
        """Remove a fetched shard."""
        (staging / file).unlink(missing_ok=True)

    def _headers(self, shards: list[str]) -> Iterable[dict[str, SourceTensor]]:
        for name in shards:
            with _hub_errors(f"{self.source}, {name}"):
                header = self._api.parse_safetensors_file_metadata(self._repo, name, revision=self._commit)
            yield {
                tensor: SourceTensor(tensor, name, str(entry.dtype), tuple(entry.shape))
                for tensor, entry in header.tensors.items()
            }


def _hub_api() -> HfApi:
    try:
        from huggingface_hub import HfApi  # noqa: PLC0415  # optional, and slow to import
    except ImportError as error:
        raise HubError(
            "fetching from the hub needs the optional part `hub`: pip install 'broker-pipeline[hub]'. "
            "Or download the checkpoint yourself and give its directory.",
            field="source",
        ) from error
    return HfApi(library_name="broker-pipeline")


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn the client's many errors into one that says what to do."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # noqa: PLC0415
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of httpx, whichever release of it the client is built on
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise HubError(
            f"the hub has no repository for {what} that you may read (private ones need HF_TOKEN)", field="source"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"the hub has no such revision: {what}", field="source") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(what, error) from error
    except (EntryNotFoundError, SafetensorsParsingError, HFValidationError, HfHubHTTPError) as error:
        raise HubError(f"the hub refused {what}: {error}", field="source") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(what, error) from error


def _unreachable(what: str, error: Exception) -> HubError:
    return HubError(
        f"the hub could not be reached for {what} ({type(error).__name__}). Run the same command again when the "
        "network is back, it goes on where it stopped; or give the directory of a downloaded checkpoint.",
        field="source",
    )
