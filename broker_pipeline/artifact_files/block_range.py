"""Block ranges as a person writes them: `0:12`, `12:`, `:`."""

from __future__ import annotations

import re

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange

_FORM = re.compile(r"^(\d*):(\d*)$")


def parse_block_range(text: str, num_layers: int) -> BlockRange:
    """Return the range `START:STOP`; a side left out reaches to the end of the model.

    Raises:
        ConfigurationError: the text has another form, or the range is empty or leaves the model.
    """
    found = _FORM.match(text.strip())
    if found is None:
        raise ConfigurationError(
            f"blocks {text!r} are not a range; write START:STOP, such as 0:{num_layers // 2 or 1}", field="blocks"
        )
    start, stop = int(found[1] or 0), int(found[2] or num_layers)
    if not 0 <= start < stop <= num_layers:
        raise ConfigurationError(
            f"blocks {text} are empty or leave the model, which has blocks 0:{num_layers}", field="blocks"
        )
    return BlockRange(start=start, stop=stop)
