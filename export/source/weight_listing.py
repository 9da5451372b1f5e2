"""Which files of a checkpoint hold its weights, known from names and the index alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import PurePath

import msgspec

from broker_pipeline.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
_OF_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # no weights, pickled as well
_OTHER_WEIGHTS = {".gguf", ".h5", ".msgpack", ".onnx", ".npz"}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def weight_file_names(names: Collection[str], index: bytes | None) -> list[str]:
    """Return the names of a checkpoint's weight files, given those of all its files and the index if it has one.

    As for transformers, one whole file counts before shards with an index. Without both, a whole set of shards or a
    single safetensors file of another name is taken: headers tell what is in them.

    Raises:
        CheckpointError: there are none, some are missing, or what is there cannot be exported; says what to do.
    """
    check_no_adapter(names)
    if SINGLE_FILE in names:
        return [SINGLE_FILE]
    if index is not None:
        return _indexed(index)
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if not found:
        raise CheckpointError(_why_none(names))
    shards = _whole_set(found)
    if shards is None and len(found) > 1:
        raise CheckpointError(
            f"the checkpoint has several weight files and no {INDEX_FILE} to say which belong together: "
            f"{', '.join(found)}. Copy the index from where the files are from, or keep only the files of the model."
        )
    return shards or found


def has_index(names: Collection[str]) -> bool:
    """Say whether an index tells where the weights are; left alongside one whole file, it is of other weights."""
    return INDEX_FILE in names and SINGLE_FILE not in names


def check_no_adapter(names: Collection[str]) -> None:
    """Refuse a LoRA adapter, alone or alongside a model's weights, which are not the ones meant without it.

    Raises:
        CheckpointError: there is one.
    """
    if ADAPTER_FILE in names:
        raise CheckpointError(
            f"this is a LoRA adapter ({ADAPTER_FILE}), which is not served by itself. Merge it into its base model "
            "(peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(DIRECTORY)), copy the "
            "base model's tokenizer and processor files there, and export that DIRECTORY. Where the weights here are "
            f"merged already, remove {ADAPTER_FILE}.",
            field=ADAPTER_FILE,
        )


def parse_index(index: bytes) -> dict[str, str]:
    """Return the file of each tensor.

    Raises:
        CheckpointError: it is no index.
    """
    try:
        return msgspec.json.decode(index, type=_Index).weight_map
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{INDEX_FILE} is not an index: {error}", field=INDEX_FILE) from error


def _indexed(index: bytes) -> list[str]:
    names = sorted(set(parse_index(index).values()))
    strange = [name for name in names if PurePath(name).name != name or not name.endswith(".safetensors")]
    if strange:
        raise CheckpointError(f"{INDEX_FILE} names files that are no shards: {', '.join(strange)}", field=INDEX_FILE)
    return names


def _whole_set(found: Collection[str]) -> list[str] | None:
    """Return the shards if there is one set of them and nothing is missing; None where names do not tell."""
    sets: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for match in filter(None, map(_SHARD.fullmatch, found)):
        sets[match["stem"], match["total"]].append(match.group())
    if len(sets) != 1:
        return None
    [((stem, total), shards)] = sets.items()
    wanted = [f"{stem}-{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
    absent = sorted(set(wanted) - set(shards))
    if absent:
        raise CheckpointError(
            f"the checkpoint lacks {len(absent)} of {len(wanted)} weight files: {', '.join(absent)}. Download it again."
        )
    return wanted


def _why_none(names: Collection[str]) -> str:
    pickled = sorted(n for n in names if PurePath(n).suffix in _PICKLED and not n.startswith(_OF_TRAINING))
    if pickled:
        return (
            f"the weights are in pickled files ({', '.join(pickled)}), which can run code when they are opened: only "
            "safetensors are read. Save them anew: AutoModelForImageTextToText.from_pretrained(DIRECTORY, "
            'dtype="auto").save_pretrained(NEW), with the tokenizer and processor files copied to NEW.'
        )
    others = sorted(name for name in names if PurePath(name).suffix in _OTHER_WEIGHTS)
    if others:
        return (
            f"the weights are in {', '.join(others)}: only safetensors are read. Use the checkpoint they were made of."
        )
    return f"the checkpoint has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} with its shards. Download it again."
