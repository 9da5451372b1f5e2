"""Which sink a target of `--to` means."""

from __future__ import annotations

from pathlib import Path

from broker_pipeline.captioning.sinks.data_set import DataSet
from broker_pipeline.captioning.sinks.parquet_shards import ParquetShards
from broker_pipeline.captioning.sinks.row import Sink
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.shards import NUMBER, Shards
from broker_pipeline.captioning.sinks.tables.parquet import Parquet, need_pyarrow
from broker_pipeline.captioning.sinks.tables.table_file import TableFile, by_file_name, by_id
from broker_pipeline.captioning.sinks.tables.text_tables import Csv, JsonLines, TypedJsonLines
from broker_pipeline.captioning.sinks.tar_shards import TarShards
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.terminal import printable

_METADATA = "metadata"
_KNOWN = (
    "FOLDER/metadata.jsonl, FOLDER/metadata.parquet, NAME.jsonl, NAME.csv, NAME.parquet, NAME-%05d.parquet, "
    "NAME-%05d.tar and FOLDER/"
)


def open_sink(target: str, settings: SinkSettings) -> Sink:
    """Return the sink; raises `ConfigurationError` for a target that means none, or cannot be written."""
    path = Path(target)
    if target.endswith("/"):
        return DataSet(path, settings)
    if "%" in path.name:
        return _shards(path, settings)
    if path.suffix == ".csv":
        return TableFile(path, settings, Csv, by_id)
    if path.suffix not in {".jsonl", ".parquet"}:
        raise ConfigurationError(f"--to {printable(target)}: it takes {_KNOWN}", field="to")
    if path.suffix == ".parquet":
        need_pyarrow()
    is_metadata = path.stem == _METADATA
    table = Parquet if path.suffix == ".parquet" else TypedJsonLines if is_metadata else JsonLines
    return TableFile(path, settings, table, by_file_name(path.parent) if is_metadata else by_id)


def _shards(path: Path, settings: SinkSettings) -> Sink:
    if len(NUMBER.findall(path.name)) != 1 or path.name.count("%") != 1 or path.suffix not in {".tar", ".parquet"}:
        reason = "shards are called NAME-%05d.tar or NAME-%05d.parquet, with one number"
        raise ConfigurationError(f"--to {printable(path)}: {reason}", field="to")
    return Shards(path, settings, TarShards(settings) if path.suffix == ".tar" else ParquetShards(settings))
