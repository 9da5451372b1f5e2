"""What the demo captions: scenes whose caption is known, and photographs that scikit-image ships."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from broker_pipeline.errors import ConfigurationError

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png")


@dataclass(frozen=True, slots=True)
class DemoPicture:
    """A picture file; `expected` is the right caption where there is one."""

    name: str
    path: Path
    expected: str | None = None


class _Scene(msgspec.Struct, frozen=True):
    name: str
    """Name of the picture's file."""
    caption: str


def photographs() -> list[DemoPicture]:
    """Return real photographs; raises `ModuleNotFoundError` where scikit-image is not installed."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
    directory = Path(found.submodule_search_locations[0]) / "data"
    return [DemoPicture(Path(name).stem, directory / name) for name in PHOTOGRAPHS if (directory / name).is_file()]


def scenes(directory: Path | None = None) -> list[DemoPicture]:
    """Return the scenes that ship with the package."""
    directory = directory or Path(str(resources.files("broker_pipeline") / "demo_scenes"))
    listing = directory / "scenes.json"
    try:
        listed = msgspec.json.decode(listing.read_bytes(), type=list[_Scene])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{listing}: {error}") from error
    found = [DemoPicture(Path(scene.name).stem, directory / scene.name, expected=scene.caption) for scene in listed]
    for picture in found:
        if not picture.path.is_file():
            raise ConfigurationError(f"{listing} names {picture.path.name}, which is not there")
    return found


def trained_model() -> Path:
    """Return the directory of the trained model that ships with the package."""
    return Path(str(resources.files("broker_pipeline") / "demo_model"))
