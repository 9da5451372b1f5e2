"""Which of a model's files says how its pictures and videos are resized, as transformers chooses it."""

from __future__ import annotations

from pathlib import Path

from broker_pipeline.errors import ModelConfigError
from stages.prompt.json_file import read_json_object
from stages.prompt.preprocess import PixelBudget
from stages.qwen3_vl.vision_config import VisionConfig

PROCESSOR_FILE = "processor_config.json"  # as transformers 5 saves it, with a section for each kind
IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"


def read_pixel_budgets(directory: Path, vision: VisionConfig) -> tuple[PixelBudget, PixelBudget | None]:
    """Return the bounds for pictures, and for videos where any file says something that holds for them.

    Raises:
        ModelConfigError: no file says anything about pictures, or a file asks for what this engine does not implement.
    """
    image = _find(directory, "image_processor", (IMAGE_FILE,), vision)
    if image is None:
        raise ModelConfigError(
            f"nothing says how pictures are resized: {IMAGE_FILE} is absent, and {PROCESSOR_FILE} has no "
            f"image_processor. Copy {IMAGE_FILE} from the model that this one was made from.",
            field=IMAGE_FILE,
        )
    return image, _find(directory, "video_processor", (VIDEO_FILE, IMAGE_FILE), vision)


def _find(directory: Path, section: str, files: tuple[str, ...], vision: VisionConfig) -> PixelBudget | None:
    is_video = section == "video_processor"
    values = read_json_object(directory / PROCESSOR_FILE).get(section)
    if values is not None:
        return PixelBudget.from_json(values, vision, file=f"{PROCESSOR_FILE}.{section}", is_video=is_video)
    for name in files:
        if (directory / name).is_file():
            return PixelBudget.from_json((directory / name).read_bytes(), vision, file=name, is_video=is_video)
    return None
