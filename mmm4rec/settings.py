"""From presets and overrides to a configuration.

Order of precedence: `--set section.key=value`, the preset, the preset it extends, the field's
default.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmm4rec.config import Config
from mmm4rec.errors import ConfigError


def load_config(
    path: Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
    *,
    base: dict[str, Any] | None = None,
) -> Config:
    """Read a preset and apply overrides.

    Args:
        path: a YAML file with any of the sections, and optionally `extends: other.yaml`
            (relative to the file). None: all defaults.
        overrides: `section.key=value`, the value parsed as YAML.
        base: plain data that the preset stands on, as if the preset extended it.

    Raises:
        ConfigError: the file is missing or malformed, extends itself, or a key or value is not
            allowed; all problems are listed, with the nearest known key.
    """
    values = merge_settings(base or {}, read_preset(path) if path else {})
    for override in overrides:
        _apply_override(values, override)
    return build_config(values, str(path) if path else "settings")


def build_config(values: dict[str, Any], where: str) -> Config:
    """Validate plain data as a Config; `where` names its origin in error messages.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(f"{where}: {problems}") from None


def read_preset(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a preset and those that it extends as plain data, not yet validated.

    Raises:
        ConfigError: a file is missing or malformed, or extends itself.
    """
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{path}: presets extend each other in a circle: {chain}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the preset {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}".replace("\n", " ")) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a preset is a mapping of sections, found {type(values).__name__}"
        )
    parent = values.pop("extends", None)
    if parent is None:
        return values
    return merge_settings(read_preset(path.parent / str(parent), (*seen, path)), values)


def merge_settings(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `top` put over it, section by section."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from None
    *sections, leaf = key.strip().split(".")
    target = values
    for section in sections:
        # A copy, so that a default shared by two configurations is never written to.
        target[section] = dict(target.get(section) or {})
        target = target[section]
    target[leaf] = value


def _describe(problem: Any) -> str:
    *parents, name = [str(part) for part in problem["loc"]] or ["settings"]
    key = ".".join([*parents, name])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest(parents, name)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{key}: {message} (found {problem['input']!r})"


def _nearest(parents: list[str], name: str) -> str:
    known = {
        section: list(getattr(field.annotation, "model_fields", {}))
        for section, field in Config.model_fields.items()
    }
    siblings = known.get(parents[0], []) if parents else list(known)
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    if close:
        return f", did you mean {'.'.join([*parents, close[0]])!r}?"
    elsewhere = [section for section, keys in known.items() if name in keys]
    if elsewhere:
        return f", did you mean {elsewhere[0]}.{name!s}?"
    return f" (known: {', '.join(siblings)})"
