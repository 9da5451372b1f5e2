"""Prompts that are shipped: one file each, its first line saying what it is for."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from broker_pipeline.captioning.prompts.template import Template
from broker_pipeline.errors import ConfigurationError

_FOLDER = files(__package__) / "presets"
_ENDING = ".txt"


@cache
def presets() -> dict[str, str]:
    """Return what each preset is for, by its name, in alphabetical order."""
    names = sorted(file.name.removesuffix(_ENDING) for file in _FOLDER.iterdir() if file.name.endswith(_ENDING))
    return {name: _parts(name)[0] for name in names}


def preset(name: str) -> Template:
    """Return a preset; raises `ConfigurationError` with the names where there is none of this one."""
    if name not in presets():
        raise ConfigurationError(f"there is no preset {name!r}; there are {', '.join(presets())}", field="preset")
    return Template(_parts(name)[1], f"--preset {name}")


def _parts(name: str) -> tuple[str, str]:
    purpose, _, text = (_FOLDER / f"{name}{_ENDING}").read_text(encoding="utf-8").partition("\n")
    return purpose.removeprefix("#").strip(), text.strip()
