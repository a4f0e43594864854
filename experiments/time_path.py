"""What makes the time path work: planted worlds, a ladder of switches, the filter's share.

python -m experiments.time_path [--out FOLDER] [--seeds N] [--study worlds|ladder|filter]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.figures import Curve, read_curve
from experiments.planted import VALIDATION_USERS, PlantedData
from experiments.presets import find_preset
from mmm4rec.config import OFFICIAL, Config
from mmm4rec.runner import fit
from mmm4rec.settings import build_config, merge_settings, read_preset
from pipeline.synthetic.temporal import Kind, Unit

STEPS_PER_EPOCH = 100
METRIC = "val/recall@10"
OFFICIAL_TIME = {
    name: value for name, value in OFFICIAL["model"].items() if name.startswith("time_")
}


def _model(**fields: Any) -> dict[str, Any]:
    return {"model": fields}


OFFICIAL_WAY: dict[str, Any] = {"fidelity": "official"}
# From the official model to the corrected one, a switch at a time.
_CLEAN = {"time_gaps": "log_units", "time_norm": "real_positions", "time_dropout": 0}
_UNDECAYED = {"optimizer": {"decayed_parameters": "weights"}, "data": {"target_time": "hidden"}}
_ALIVE = {**_CLEAN, "time_scale": "one_plus"}
_ABSOLUTE = {**_ALIVE, "time_norm": "none"}
LADDER: dict[str, dict[str, Any]] = {
    "official": OFFICIAL_WAY,
    "+ target's time hidden, no decay on the time path": {**OFFICIAL_WAY, **_UNDECAYED},
    "+ log gaps, padding masked, no dropout on gaps": {
        **OFFICIAL_WAY,
        **_UNDECAYED,
        **_model(**_CLEAN),
    },
    "+ scale that starts at 1": {**OFFICIAL_WAY, **_UNDECAYED, **_model(**_ALIVE)},
    "+ no norm over a sequence's gaps": {**OFFICIAL_WAY, **_UNDECAYED, **_model(**_ABSOLUTE)},
    "+ residual convolutions": {
        **OFFICIAL_WAY,
        **_UNDECAYED,
        **_model(**_ABSOLUTE, time_convolution="residual"),
    },
    "corrected": {},
    "corrected, plain convolutions": _model(time_convolution="plain"),
    "corrected, norm over real positions": _model(time_norm="real_positions"),
    "corrected, Tanhshrink": _model(time_scale="tanhshrink"),
    "corrected, log of seconds": _model(time_gaps="log_seconds"),
    "corrected, decay on all": {"optimizer": {"decayed_parameters": "all"}},
    "corrected, dropout on gaps": _model(time_dropout=0.4),
    "corrected, skip D*x": _model(skip="unscaled"),
}
FILTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "none": _model(time_filter="none"),
    "gate": _model(time_filter="gate"),
    "text only": _model(time_filter="source_only"),
    "image only": _model(time_filter="query_only"),
}
WAYS: dict[str, dict[str, Any]] = {
    "corrected": {},
    "official": OFFICIAL_WAY,
    "without time": _model(use_time=False),
}


@dataclass(frozen=True)
class Outcome:
    """One trained model on one world.

    Attributes:
        curve: recall at 10 after each epoch, on held-out users.
        way: share of the way from the blind to the seeing ceiling at the end; in `nothing`, where
            the ceilings are one, share of the ceiling.
    """

    curve: Curve
    way: float


def settings(changes: dict[str, Any], kind: Kind, seed: int) -> Config:
    """Return the configuration of a planted run."""
    values = merge_settings(read_preset(find_preset("planted")), changes)
    extra: dict[str, Any] = {"trainer": {"seed": seed}}
    if kind == "query" and changes.get("fidelity") != "official":
        extra["data"] = {"query_time": "now"}
    return build_config(merge_settings(values, extra), "the planted preset")


def measure(changes: dict[str, Any], kind: Kind, unit: Unit, seed: int, folder: Path) -> Outcome:
    """Train one model on one world, or read what was measured before."""
    config = settings(changes, kind, seed)
    data = PlantedData(config, kind, unit, batches=STEPS_PER_EPOCH)
    run = fit(
        config, data, stage="pretrain", runs_dir=folder / "runs", reuse=True, echo=lambda line: None
    )
    curve = read_curve(run.folder, METRIC)
    blind, seeing = data.world.ceilings(VALIDATION_USERS)
    reached = curve[-1][1]
    if kind == "nothing":
        return Outcome(curve, reached / seeing)
    return Outcome(curve, (reached - blind) / (seeing - blind))
