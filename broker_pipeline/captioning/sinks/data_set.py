"""A folder that `datasets.load_dataset` and the Hugging Face hub take as it is: shards of Parquet, and a README."""

from __future__ import annotations

import json
from pathlib import Path

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sinks.new_file import opening, write_whole, writing
from broker_pipeline.captioning.sinks.parquet_shards import ParquetShards
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.shards import Shards
from broker_pipeline.captioning.sinks.tables.parquet import features_of
from broker_pipeline.captioning.sinks.texts import json_text, valid
from broker_pipeline.captioning.sources.item import Item

_MARK = "<!-- Every run of `broker-pipeline caption` writes this page anew, unless this line is removed. -->"


class DataSet:
    """A sink that writes `FOLDER/data/train-%05d.parquet` and `FOLDER/README.md`."""

    def __init__(self, folder: Path, settings: SinkSettings) -> None:
        """Begin, or go on with, a data set; raises `ConfigurationError`."""
        self._readme = folder / "README.md"
        self._form = ParquetShards(settings)
        with opening(folder):
            (folder / "data").mkdir(parents=True, exist_ok=True)
        self._shards = Shards(folder / "data" / "train-%05d.parquet", settings, self._form)
        self._asked: dict[str, CaptionLine] | None = None

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where such an item has no place beside those before it."""
        self._form.check(item)

    def add(self, row: Row) -> None:
        """Take a row, and write the shard that it completes."""
        if self._asked is None and row.is_whole:
            self._asked = dict(row.lines)
        self._shards.add(row)

    def close(self, *, is_whole: bool) -> None:
        """Finish the shards; the README comes last, so that it tells of what is there."""
        self._shards.finish(is_whole=is_whole)
        if is_whole and self._is_ours():
            write_whole(self._readme, self._text().encode())
        self._shards.tell_unreadable()

    def _is_ours(self) -> bool:
        """Whether the README may be written: a person's own stays."""
        with writing(self._readme):
            return not self._readme.exists() or _MARK.encode() in self._readme.read_bytes()

    def _text(self) -> str:
        parts = [f"---\n{self._yaml()}---", _MARK, "# Captioned pictures", _described(self._asked or {})]
        parts.append("No licence is named: add `license:` above, of the pictures and of what the model's licence says.")
        return "\n\n".join(parts) + "\n"

    def _yaml(self) -> str:
        """Return the facts that the hub and `datasets` read; JSON in one line is YAML as well."""
        shards, columns = self._shards.shards, self._form.columns
        num_bytes = sum(shard.bytes for shard in shards)
        features = [{"name": name, **_short(each)} for name, each in features_of(columns).items()] if columns else []
        split = {"name": "train", "num_bytes": num_bytes, "num_examples": sum(shard.rows for shard in shards)}
        info = {"features": features, "splits": [split], "download_size": num_bytes, "dataset_size": num_bytes}
        files = {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        lines = "".join(f"  {name}: {json_text(value)}\n" for name, value in info.items())
        return f"dataset_info:\n{lines}configs: {json_text([files])}\n"


def _short(feature: dict[str, object]) -> dict[str, object]:
    """Return a feature as a README has it, which is what `Features._to_yaml_list` makes of it."""
    inner = feature.get("feature")
    if isinstance(inner, dict):
        return {"list": inner["dtype"]}
    return {"dtype": feature.get("dtype", str(feature["_type"]).lower())}


def _described(asked: dict[str, CaptionLine]) -> str:
    """Say which model was asked what; of what templates make for each picture, the first is shown."""
    parts = []
    for name, line in asked.items():
        model = valid(f"{line.model or 'an unnamed model'} (fingerprint {line.fingerprint or 'unknown'})")
        parameters = json.dumps(line.parameters or {}, ensure_ascii=False)
        about = f"`{name}`: by {model}, with the parameters `{valid(parameters)}`."
        prompts = [text for text in (line.system, line.prompt) if text]
        quoted = [f"Asked, of the first picture:\n\n{_indented(text)}" for text in prompts] or ["Asked by the gateway."]
        parts += [about, *quoted]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in valid(text).splitlines())
