"""Named presets: YAML files that hold differences only."""

from __future__ import annotations

from pathlib import Path

from mmm4rec.errors import ConfigError


def find_preset(name: str) -> Path:
    """Return the file of a preset: a path as given, or the name of one of this folder.

    Raises:
        ConfigError: it is neither.
    """
    given, own = Path(name), Path(__file__).parent / f"{name}.yaml"
    if given.suffix in {".yaml", ".yml"} and given.is_file():
        return given
    if own.is_file() and own.parent == Path(__file__).parent and given.name == name:
        return own
    known = ", ".join(sorted(path.stem for path in own.parent.glob("*.yaml")))
    raise ConfigError(f"no preset {name!r}: give a YAML file or one of {known}")
