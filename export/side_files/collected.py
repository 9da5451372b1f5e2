"""The side files that an artifact gets: those of the checkpoint, and a `tokenizer.json` where only older files are."""

from __future__ import annotations

from export.side_files.bpe_tokenizer import has_older_files, tokenizer_json
from export.source.checkpoint import Checkpoint
from stages.prompt.tokenizer import TOKENIZER_FILE


def collect_side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files by name.

    Raises:
        CheckpointError, ModelConfigError: `tokenizer.json` cannot be made of the files that the checkpoint has instead.
    """
    files = {name: checkpoint.read_side_file(name) for name in checkpoint.side_files}
    if TOKENIZER_FILE not in files and has_older_files(files):
        files[TOKENIZER_FILE] = tokenizer_json(files)
    return files
