"""The authors' configuration files, and ours.

Their files have fifty keys: some shape the model, some say how it was trained, and the rest have no
effect or say where files are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmm4rec.config import OFFICIAL, Config, ModelConfig
from mmm4rec.errors import CheckpointError, ConfigError

# Their setting -> ours. These shape the model: each must be given.
SETTINGS = {
    "hidden_size": "model.d_model",
    "inner_size": "model.d_feed_forward",
    "num_layers": "model.num_layers",
    "embedding_drop_prob": "model.item_dropout",
    "dropout_prob": "model.dropout",
    "time_dropout_prob": "model.time_dropout",
    "d_state": "model.d_state",
    "n_groups": "model.num_groups",
    "d_conv": "model.d_conv",
    "expand": "model.expand",
    "head_dim": "model.head_dim",
    "norm_eps": "model.norm_eps",
    "is_ffn": "model.use_feed_forward",
    "is_time": "model.use_time",
    "p2p_residual": "model.per_position_time_gate",
    "is_modality_bias": "model.use_item_bias",
    "temperature": "model.temperature",
    "max_len": "model.max_len",
}
# These say how it was trained: ours keep their defaults where they are not given.
TRAINING_SETTINGS = {
    "seed": "trainer.seed",
    "batch_size": "data.batch_size",
    "accumulation_steps": "trainer.accumulate_grad_batches",
    "Epoch": "trainer.max_epochs",
    "stop_epoch": "trainer.early_stopping_patience",
    "valid_metric": "trainer.monitor",
    "float32_precise": "trainer.matmul_precision",
    "optimizer_lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "in_batch_loss": "loss.candidates",
    "top_k": "evaluation.cutoffs",
}
# No effect there (`chunk_size`, `is_kai_ming_init`, `loss_type`), or paths, reading and showing.
# The two counts come from the data set.
WITHOUT_EFFECT = frozenset(
    {
        "checkpoint",
        "chunk_size",
        "dataset_path",
        "is_kai_ming_init",
        "is_linecache",
        "is_pbar",
        "item_mm_fusion",
        "item_num",
        "large_file_mode",
        "light_save",
        "logger",
        "loss_type",
        "metrics",
        "metrics_table_displays",
        "model_compile",
        "pin_memory",
        "pretrain_checkpoint",
        "return_scores",
        "save_step",
        "shuffle",
        "text_embed_path",
        "user_num",
        "vision_embed_path",
    }
)
MODALITIES = {"text": "text", "vision": "image"}  # their stream -> ours, in the order of fusion

_ALL = SETTINGS | TRAINING_SETTINGS
_METRICS = {"Hit": "recall", "NDCG": "ndcg"}
_MAX_BYTES = 1 << 16
# Of what happens before a model sees a batch, with time; the rest of OFFICIAL is in the model.
_TIME_FIELDS = {
    "data.target_time",
    "data.query_time",
    "model.time_convolution",
    "model.time_filter",
    "model.time_gaps",
    "model.time_norm",
    "model.time_scale",
}
# The one value that their code knows of what is here for studies and comparisons.
_STUDIED: dict[str, dict[str, Any]] = {
    "data": {"query_time": "none", "last_items": None},
    "model": {
        "name": "mmm4rec",
        "mixer": "ssd",
        "share_ti_ssd": True,
        "skip": "scaled_by_step",
        "time_filter": "full",
    },
}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration file of the authors, YAML or JSON.

    Raises:
        ConfigError: it cannot be read, is no mapping, or larger than such a file is.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES} bytes, not a configuration file")
        settings = yaml.safe_load(content)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: neither YAML nor JSON: {reason}") from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}: expected a mapping with hidden_size, num_layers, ..., "
            f"found {type(settings).__name__}"
        )
    return {str(key): value for key, value in settings.items()}


def official_config(settings: Mapping[str, Any]) -> Config:
    """Return the configuration that the authors' settings describe, quirks included.

    Args:
        settings: at least the keys of `SETTINGS`.

    Raises:
        ConfigError: a setting is missing, not allowed, or asks for a fusion without results.
    """
    missing = [f"{name} ({_allowed(name)})" for name in SETTINGS if name not in settings]
    if missing:
        unknown = ", ".join(unknown_settings(settings))
        raise ConfigError(
            f"the official settings lack {', '.join(missing)}"
            + (f"; not known are {unknown}" if unknown else "")
            + ". Next: add them to the file, with the values that the weights were trained with"
        )
    fusion = settings.get("item_mm_fusion", "static")
    if fusion != "static":
        raise ConfigError(f"item_mm_fusion is {fusion!r} (allowed: static, the paper's)")
    values: dict[str, Any] = {"fidelity": "official"}
    for theirs, ours in _ALL.items():
        if theirs in settings:
            section, _, key = ours.partition(".")
            values.setdefault(section, {})[key] = _our_value(theirs, settings[theirs])
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(f"official settings: {problems}") from None


def official_model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the architecture of `official_config`.

    Raises:
        ConfigError: as `official_config`.
    """
    return official_config(settings).model


def unknown_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that are not carried over although they may matter.

    >>> unknown_settings({"hidden_size": 8, "logger": "x", "num_experts": 4})
    ['num_experts']
    """
    known = _ALL.keys() | WITHOUT_EFFECT
    # A decaying learning rate: off in all published runs, and not here.
    known |= set() if settings.get("is_scheduler") else {"is_scheduler"}
    return sorted(settings.keys() - known)


def official_settings(config: Config) -> dict[str, Any]:
    """Return the authors' settings for a configuration; the inverse of `official_config`.

    Raises:
        CheckpointError: their code computes something else, whatever its settings; the message
            names the fields.
    """
    differing = [
        f"{name} is {found!r} (there: {theirs!r})"
        for name, found, theirs in _fixed_fields(config)
        if found != theirs
    ]
    if differing:
        raise CheckpointError(
            "no setting of the authors' code makes it compute this model: "
            f"{'; '.join(differing)}. Next: train one with --set fidelity=official"
        )
    plain = config.as_dict()
    # The last two without effect, but asked for there.
    settings = {"item_mm_fusion": "static", "chunk_size": 32, "is_kai_ming_init": False}
    for theirs, ours in _ALL.items():
        section, _, key = ours.partition(".")
        settings[theirs] = _their_value(theirs, plain[section][key])
    return settings


def _fixed_fields(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, its value, theirs) of what no setting of theirs can change."""
    yield "data.modalities", config.data.modalities, tuple(MODALITIES.values())
    plain = config.as_dict()
    for section in ("data", "model"):
        for key, theirs in (OFFICIAL[section] | _STUDIED[section]).items():
            name = f"{section}.{key}"
            unused = name in _TIME_FIELDS and not config.model.use_time
            if name not in SETTINGS.values() and not unused:
                yield name, plain[section][key], theirs


def _our_value(theirs: str, value: Any) -> Any:
    if theirs == "in_batch_loss":
        return "in_batch" if str(value).lower() == "true" else "full"
    if theirs == "float32_precise":
        return "highest" if value == "none" else value
    if theirs == "valid_metric":
        name, _, cutoff = str(value).partition("@")
        return f"val/{_METRICS.get(name, name)}@{cutoff}"
    return value


def _their_value(theirs: str, value: Any) -> Any:
    if theirs == "in_batch_loss":
        return value == "in_batch"
    if theirs == "float32_precise":
        return "none" if value == "highest" else value
    if theirs == "valid_metric":
        name, _, cutoff = str(value).removeprefix("val/").partition("@")
        return f"{next(key for key, ours in _METRICS.items() if ours == name)}@{cutoff}"
    return value


def _describe(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    ours = ".".join(str(part) for part in problem["loc"][:2])
    where = next((theirs for theirs, name in _ALL.items() if name == ours), None)
    if where is None:  # two settings contradict each other
        return f"sizes: {message}" if ours == "model" else message
    return f"{where}: {message} (found {str(problem['input'])[:80]!r})"


def _allowed(theirs: str) -> str:
    field = ModelConfig.model_fields[SETTINGS[theirs].removeprefix("model.")]
    if field.annotation is bool:
        return "true or false"
    limits = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in (("ge", ">="), ("gt", ">"), ("lt", "<"))
        if hasattr(limit, key)
    ]
    return f"{'a number' if field.annotation is float else 'an integer'} {' and '.join(limits)}"
