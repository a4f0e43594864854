"""What makes the time path work: planted worlds, a ladder of switches, the filter's share.

python -m experiments.time_path worlds ladder filter rule --seeds 5
python -m experiments.time_path rule --data-dir demo/data --domain MiniOffice --domain MiniArts
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from experiments.cells import ABSENT
from experiments.figures import Curve, draw_curves, read_curve
from experiments.planted import VALIDATION_USERS, PlantedData
from experiments.presets import find_preset
from experiments.report import Cell, Figure, Row, Section, Table, write_report
from experiments.statistics import Estimate, compare, user_metrics
from experiments.time_rule import TimeGain, draw_rule, fit_time_rule
from mmm4rec.config import OFFICIAL, Config
from mmm4rec.run_folder import Echo, environment
from mmm4rec.runner import Run, fit
from mmm4rec.settings import build_config, merge_settings, read_preset
from pipeline.datamodule import SequenceDataModule
from pipeline.describe import DomainStatistics, describe_domain, describe_interactions
from pipeline.synthetic.temporal import KINDS, UNITS, Kind, TemporalWorld, Unit
from pipeline.tables import INTERACTION_SCHEMA

STEPS_PER_EPOCH = 100
METRIC = "val/recall@10"
DOMAIN_PRESET = "demo-finetune"  # of prepared domains: from scratch, small, stopped early

Changes = dict[str, Any]


def _model(**fields: Any) -> Changes:
    return {"model": fields}


_OFFICIAL: Changes = {"fidelity": "official"}
# From the official model towards the corrected one, a switch at a time.
_UNDECAYED: Changes = {
    **_OFFICIAL,
    "optimizer": {"decayed_parameters": "weights"},
    "data": {"target_time": "hidden"},
}
_CLEAN = {"time_gaps": "log_units", "time_norm": "real_positions", "time_dropout": 0}
_ALIVE = {**_CLEAN, "time_scale": "one_plus"}
_ABSOLUTE = {**_ALIVE, "time_norm": "none"}
_RESIDUAL = {**_ABSOLUTE, "time_convolution": "residual"}
LADDER: dict[str, Changes] = {
    "official": _OFFICIAL,
    "+ target's time hidden, no decay on the time path": _UNDECAYED,
    "+ log gaps, padding masked, no dropout on gaps": {**_UNDECAYED, **_model(**_CLEAN)},
    "+ scale that starts at 1": {**_UNDECAYED, **_model(**_ALIVE)},
    "+ no norm over a sequence's gaps": {**_UNDECAYED, **_model(**_ABSOLUTE)},
    "+ residual convolutions": {**_UNDECAYED, **_model(**_RESIDUAL)},
    "corrected": {},
    "corrected, plain convolutions": _model(time_convolution="plain"),
    "corrected, norm over real positions": _model(time_norm="real_positions"),
    "corrected, Tanhshrink": _model(time_scale="tanhshrink"),
    "corrected, log of seconds": _model(time_gaps="log_seconds"),
    "corrected, raw seconds": _model(time_gaps="seconds", time_norm="real_positions"),
    "corrected, decay on all": {"optimizer": {"decayed_parameters": "all"}},
    "corrected, dropout on gaps": _model(time_dropout=OFFICIAL["model"]["time_dropout"]),
    "corrected, skip D*x": _model(skip="unscaled"),
}
FILTERS: dict[str, Changes] = {
    "full": {},
    "none": _model(time_filter="none"),
    "gate": _model(time_filter="gate"),
    "text only": _model(time_filter="source_only"),
    "image only": _model(time_filter="query_only"),
}
BLIND = "without time"
WAYS: dict[str, Changes] = {
    "corrected": {},
    "official": _OFFICIAL,
    BLIND: _model(use_time=False),
}
WORLDS: list[tuple[Kind, Unit]] = [(kind, unit) for kind in KINDS for unit in UNITS]


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


def settings(changes: Changes, kind: Kind, seed: int) -> Config:
    """Return the configuration of a planted run."""
    values = merge_settings(read_preset(find_preset("planted")), changes)
    extra: Changes = {"trainer": {"seed": seed}}
    if kind == "query" and changes.get("fidelity") != "official":
        extra["data"] = {"query_time": "now"}
    return build_config(merge_settings(values, extra), "the planted preset")


def train(
    changes: Changes, kind: Kind, unit: Unit, seed: int, folder: Path
) -> tuple[Run, TemporalWorld]:
    """Train one model on one world, or find the run that did; return the world too."""
    config = settings(changes, kind, seed)
    data = PlantedData(config, kind, unit, batches=STEPS_PER_EPOCH)
    return _fit(config, data, folder), data.world


def domain_settings(changes: Changes, data_dir: Path, seed: int) -> Config:
    """Return the configuration of a run on a prepared domain."""
    values = merge_settings(read_preset(find_preset(DOMAIN_PRESET)), changes)
    here: Changes = {"trainer": {"seed": seed}, "data": {"data_dir": str(data_dir)}}
    return build_config(merge_settings(values, here), f"the preset {DOMAIN_PRESET}")


def train_on_domain(changes: Changes, domain: str, data_dir: Path, seed: int, folder: Path) -> Run:
    """Train one model from scratch on a prepared domain, or find the run that did.

    Raises:
        DataError: the domain is not prepared.
    """
    config = domain_settings(changes, data_dir, seed)
    return _fit(config, SequenceDataModule.from_config(config, [domain], "finetune"), folder)


def _fit(config: Config, data: SequenceDataModule, folder: Path) -> Run:
    return fit(
        config,
        data,
        stage="finetune",
        runs_dir=folder / "runs",
        reuse=True,
        echo=lambda line: None,
    )


def measure(changes: Changes, kind: Kind, unit: Unit, seed: int, folder: Path) -> Outcome:
    """Return how far one model comes on one world."""
    run, world = train(changes, kind, unit, seed, folder)
    curve = read_curve(run.folder, METRIC)
    blind, seeing = world.ceilings(VALIDATION_USERS)
    reached = curve[-1][1]
    if kind == "nothing":
        return Outcome(curve, reached / seeing)
    return Outcome(curve, (reached - blind) / (seeing - blind))


@dataclass(frozen=True)
class Studies:
    """The studies, each a section of the report.

    Attributes:
        folder: holds runs and report.
        seeds: how many, from 0; of the planted worlds in `rule` the first alone.
        domains: prepared ones for `rule`, besides the planted worlds.
        data_dir: holds `prepared/` of these domains.
        echo: told what happens.
    """

    folder: Path
    seeds: int
    domains: list[str]
    data_dir: Path
    echo: Echo

    def worlds(self) -> Section:
        """Return the corrected and the official model on every world, in `nothing` a blind one."""
        rows, panels = [], {}
        for kind, unit in WORLDS:
            name = f"{kind}, {unit}"
            found = {
                way: self._outcomes(changes, kind, unit, f"{name}: {way}")
                for way, changes in WAYS.items()
                if way != BLIND or kind == "nothing"  # elsewhere its ceiling is known
            }
            cells = [_way_cell(found[way]) if way in found else Cell(ABSENT) for way in WAYS]
            rows.append(Row(name, cells))
            panels[name] = {way: [o.curve for o in outcomes] for way, outcomes in found.items()}
        table = Table(
            "Share of the way from the blind to the seeing ceiling after 1,000 steps",
            list(WAYS),
            rows,
            ["In `nothing` the two ceilings are one: the share of it. In brackets least and most."],
        )
        return self._section("Planted worlds", table, panels, "worlds.png")

    def ladder(self) -> Section:
        """Return what each switch moves."""
        return self._compared("The ladder", LADDER, ("gap",), "ladder.png")

    def filter(self) -> Section:
        """Return what the filter adds where a rhythm decides."""
        return self._compared("The filter", FILTERS, ("rhythm",), "filter.png")

    def rule(self) -> Section:
        """Return which statistic of the times tells what time is worth to a model."""
        # First the domains: where one is not prepared that is said at once.
        rows = [self._gain_on_domain(domain) for domain in self.domains]
        rows += [self._gain(kind, unit) for kind, unit in WORLDS]
        rule = fit_time_rule(rows)
        picture = self.folder / "rule.png"
        draw_rule(rule, picture)
        figure = Figure("Gain from time", picture, "One point per planted world or domain.")
        return Section("When does time help?", rule.paragraph(), [], [figure])

    def _compared(
        self, title: str, ways: dict[str, Changes], kinds: tuple[Kind, ...], picture: str
    ) -> Section:
        rows: list[Row] = []
        panels: dict[str, dict[str, list[Curve]]] = {kind: {} for kind in kinds}
        for name, changes in ways.items():
            cells = []
            for kind in kinds:
                outcomes = self._outcomes(changes, kind, "days", f"{kind}: {name}")
                cells.append(_way_cell(outcomes))
                panels[kind][name] = [outcome.curve for outcome in outcomes]
            rows.append(Row(name, cells))
        note = "Share of the way from the blind to the seeing ceiling; in brackets least and most."
        return self._section(title, Table(title, list(kinds), rows, [note]), panels, picture)

    def _section(
        self, title: str, table: Table, panels: dict[str, dict[str, list[Curve]]], picture: str
    ) -> Section:
        draw_curves(panels, METRIC, self.folder / picture)
        note = f"An epoch is {STEPS_PER_EPOCH} steps."
        return Section(title, "", [table], [Figure(title, self.folder / picture, note)])

    def _outcomes(self, changes: Changes, kind: Kind, unit: Unit, name: str) -> list[Outcome]:
        outcomes = [measure(changes, kind, unit, seed, self.folder) for seed in range(self.seeds)]
        self.echo(f"{name}: {_way_cell(outcomes).text}")
        return outcomes

    def _gain(self, kind: Kind, unit: Unit) -> TimeGain:
        without, _ = train(WAYS[BLIND], kind, unit, 0, self.folder)
        timed, world = train(WAYS["corrected"], kind, unit, 0, self.folder)
        max_len = settings({}, kind, 0).model.max_len
        described = describe_interactions(
            f"{kind}, {unit}", interactions(world), has_time=True, max_len=max_len
        )
        return self._time_gain(described, [without], [timed])

    def _gain_on_domain(self, domain: str) -> TimeGain:
        max_len = domain_settings({}, self.data_dir, 0).model.max_len
        described = describe_domain(self.data_dir, domain, max_len)
        without, timed = (
            [
                train_on_domain(WAYS[way], domain, self.data_dir, seed, self.folder)
                for seed in range(self.seeds)
            ]
            for way in (BLIND, "corrected")
        )
        return self._time_gain(described, without, timed)

    def _time_gain(
        self, described: DomainStatistics, without: list[Run], timed: list[Run]
    ) -> TimeGain:
        found = compare(*([_ndcg(run) for run in runs] for runs in (without, timed)))
        gain = Estimate(found.difference, found.low, found.high, seeds=len(timed))
        self.echo(f"{described.domain}: gain {gain.value:.4f} [{gain.low:.4f}, {gain.high:.4f}]")
        return TimeGain(described.domain, described, gain)


def _ndcg(run: Run) -> Tensor:
    return user_metrics(run.folder, (10,))["ndcg@10"]


def interactions(world: TemporalWorld) -> pl.DataFrame:
    """Return the world as the table of a prepared domain."""
    users_N = np.repeat(np.arange(len(world.bits_U)), np.diff(world.offsets_U))
    columns = {"user_id": users_N, "item_id": world.items_N, "timestamp": world.seconds_N}
    return pl.DataFrame(columns, schema=INTERACTION_SCHEMA)


def _way_cell(outcomes: list[Outcome]) -> Cell:
    ways = [outcome.way for outcome in outcomes]
    mean = sum(ways) / len(ways)
    return Cell(f"{mean:.3f} [{min(ways):.3f}, {max(ways):.3f}]")


def main(given: list[str] | None = None) -> None:
    """Run the studies that are named and write report.md and report.html."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("worlds", "ladder", "filter", "rule")
    parser.add_argument("studies", nargs="+", choices=names)
    parser.add_argument("--seeds", type=int, default=5, help="runs of every model")
    parser.add_argument("--domain", action="append", default=[], help="a prepared one for `rule`")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="holds prepared/")
    parser.add_argument("--out", type=Path, default=Path("reports/time-path"))
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    echo = partial(print, flush=True)
    studies = Studies(options.out, options.seeds, options.domain, options.data_dir, echo)
    domains = "".join(f" --domain {domain}" for domain in options.domain)
    write_report(
        options.out,
        "The time path",
        [getattr(studies, name)() for name in options.studies],
        command=f"python -m experiments.time_path {' '.join(options.studies)} "
        f"--seeds {options.seeds}{domains}",
        environment=environment(),
    )


if __name__ == "__main__":
    main()
