"""The runs of a reproduction: each distinct one once, cached by its configuration, several at once.

`python -m experiments.runs` reads one `Job` as JSON and does it: how `execute` uses several GPUs.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter
from torch import nn

from experiments.presets import find_preset
from experiments.processes import JobProcesses, place_environments, visible_gpus
from experiments.workspace import Workspace
from mmm4rec.baselines.content import ContentNeighbour
from mmm4rec.baselines.popularity import Popularity
from mmm4rec.checkpoint import Checkpoint, read_checkpoint
from mmm4rec.config import Config, architecture
from mmm4rec.errors import Mmm4RecError
from mmm4rec.run_folder import RESULTS, Echo, find_run
from mmm4rec.runner import Run, evaluate, fit, run_digest
from mmm4rec.settings import load_config, merge_settings, read_preset
from pipeline.datamodule import SequenceDataModule

Stage = Literal["pretrain", "finetune", "evaluate"]
Untrained = Literal["popularity", "content"]

REPORT_SECONDS = 30.0  # a run that takes longer says a line now and then
FAILED = 3  # exit code of a job whose run failed as a user can expect
INTERRUPTED = 130  # exit code of a job after Ctrl-C


@dataclass(frozen=True)
class Spec:
    """One run; equal ones, whatever their names, are done once.

    Attributes:
        name: for people: what is special about it.
        stage: `pretrain`, `finetune`, or `evaluate` for a model without training.
        domains: one, or those that are joined for pre-training.
        presets: over that of the stage and below those of the world, in this order.
        settings: `section.key=value`, over all presets.
        seed: of everything that is random.
        source: the pre-training that a fine-tuning starts from; None: from scratch.
        untrained: which model, where the stage is `evaluate`.
    """

    name: str = field(compare=False)
    stage: Stage
    domains: tuple[str, ...]
    presets: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    seed: int = 0
    source: Spec | None = None
    untrained: Untrained | None = None

    def __post_init__(self) -> None:
        """Check what no table may ask for."""
        assert (self.untrained is not None) == (self.stage == "evaluate")
        assert self.source is None or self.stage == "finetune"

    @property
    def label(self) -> str:
        """Domains, name and seed in one line."""
        seed = "" if self.untrained else f", seed {self.seed}"
        return f"{'+'.join(self.domains)}: {self.name}{seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a run: exactly one of its results and the reason why there are none."""

    run: Run | None = None
    failure: str | None = None

    def finished(self) -> Run:
        """Return the run.

        Raises:
            Mmm4RecError: it failed.
        """
        if self.run is None:
            raise Mmm4RecError(self.failure)
        return self.run


Outcomes = dict[Spec, Outcome]


@dataclass(frozen=True)
class Job:
    """A run for another process."""

    spec: Spec
    workspace: Workspace


JOB = TypeAdapter(Job)


def pretraining(
    workspace: Workspace,
    name: str,
    seed: int,
    presets: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
) -> Spec:
    """Describe the pre-training of a model on all pre-training domains of a world."""
    return Spec(name, "pretrain", workspace.pretraining, presets, settings, seed)


def execute(
    specs: Iterable[Spec], workspace: Workspace, *, echo: Echo, jobs: int | None = None
) -> Outcomes:
    """Do every distinct run and those that they start from, sources first.

    Finished runs are taken up, interrupted ones carried on. A run that fails (a domain that is not
    prepared, a divergence) leaves its reason; what starts from it is not tried; all others go on.

    Args:
        specs: the runs.
        workspace: where.
        echo: told a line when a run begins or ends, and now and then in a long one.
        jobs: runs at once, each in a process of its own; None: one for each GPU.
    """
    ordered = in_order(specs)
    uses_gpus = any(settings_of(spec, workspace).trainer.accelerator != "cpu" for spec in ordered)
    gpus = visible_gpus() if uses_gpus else []
    count = jobs or max(1, len(gpus))
    if count > 1:
        return _spread(ordered, workspace, echo, place_environments(count, gpus))
    outcomes: Outcomes = {}
    for spec in ordered:
        outcomes[spec] = _unreachable(spec, outcomes) or attempt(spec, workspace, echo)
        _say(spec, outcomes[spec], echo)
    return outcomes


def in_order(specs: Iterable[Spec]) -> list[Spec]:
    """Return the distinct specs and their sources, each source before what starts from it."""
    ordered: dict[Spec, None] = {}
    for spec in specs:
        if spec.source:
            ordered.setdefault(spec.source)
        ordered.setdefault(spec)
    return list(ordered)


def run_spec(spec: Spec, workspace: Workspace, echo: Echo) -> Run:
    """Do a run and the one that it starts from, or return what is there.

    Raises:
        Mmm4RecError: as `mmm4rec.runner.fit`, or a domain is not prepared.
    """
    source = run_spec(spec.source, workspace, echo) if spec.source else None
    checkpoint = read_checkpoint(source.folder) if source else None
    config = settings_of(spec, workspace, checkpoint)
    data = data_of(spec, config)
    if spec.stage == "evaluate":
        done = find_finished(spec, config, workspace, checkpoint)
        return done or _evaluate_untrained(spec, config, data, workspace)
    return fit(
        config,
        data,
        stage=spec.stage,
        runs_dir=workspace.runs_dir,
        checkpoint=checkpoint,
        reuse=True,
        echo=echo,
    )


def settings_of(spec: Spec, workspace: Workspace, checkpoint: Checkpoint | None = None) -> Config:
    """Return the configuration of a run: stage, architecture, presets, world, settings.

    Every run has one device, so that its results do not depend on how many there are.

    Raises:
        ConfigError: a preset or a setting is not allowed.
    """
    verb = _split(spec)
    values = read_preset(find_preset(verb))
    if checkpoint:
        values = merge_settings(values, architecture(checkpoint.config))
    world = [workspace.presets[verb]] if verb in workspace.presets else []
    for preset in (*spec.presets, *world):
        values = merge_settings(values, read_preset(find_preset(preset)))
    here = {
        "data": {"data_dir": str(workspace.data_dir)},
        "trainer": {"seed": spec.seed, "devices": 1},
    }
    values = merge_settings(values, here)
    return load_config(None, [*spec.settings, *workspace.settings], base=values)


def data_of(spec: Spec, config: Config) -> SequenceDataModule:
    """Describe the data of a run; nothing is read."""
    return SequenceDataModule.from_config(config, list(spec.domains), _split(spec))


def find_finished(
    spec: Spec, config: Config, workspace: Workspace, checkpoint: Checkpoint | None
) -> Run | None:
    """Return a finished run of this configuration, data and checkpoint.

    Raises:
        DataError: a domain is not prepared.
    """
    parent = workspace.runs_dir / spec.stage / "+".join(spec.domains)
    folder = find_run(parent, _digest(spec, config, checkpoint), finished=True)
    if folder is None:
        return None
    return Run(folder, json.loads((folder / RESULTS).read_text(encoding="utf-8")))


def _digest(spec: Spec, config: Config, checkpoint: Checkpoint | None) -> str:
    start = spec.untrained or (checkpoint.sha256 if checkpoint else "")
    return run_digest(config, spec.stage, data_of(spec, config).lock(), start)


def _split(spec: Spec) -> Literal["pretrain", "finetune"]:
    return "pretrain" if spec.stage == "pretrain" else "finetune"


def _evaluate_untrained(
    spec: Spec, config: Config, data: SequenceDataModule, workspace: Workspace
) -> Run:
    model: nn.Module
    if spec.untrained == "content":
        model = ContentNeighbour(data.catalogue)
    else:
        model = Popularity(data.train_items(), data.catalogue.num_items)
    name = f"{spec.untrained}-{_digest(spec, config, None)}"
    folder = workspace.runs_dir / spec.stage / data.domains[0] / name
    return evaluate(config, model, data, folder, described={"model": spec.untrained})


def attempt(spec: Spec, workspace: Workspace, echo: Echo) -> Outcome:
    """Do a run; a failure that a user can cause becomes a reason."""
    try:
        run = run_spec(spec, workspace, _now_and_then(echo, spec.label))
    except Mmm4RecError as error:
        return Outcome(failure=str(error))
    return Outcome(run)


def _spread(
    ordered: list[Spec], workspace: Workspace, echo: Echo, environments: list[dict[str, str]]
) -> Outcomes:
    """Do runs in several processes; whatever waits for nothing begins first."""
    outcomes: Outcomes = {}
    waiting, running = list(ordered), dict[Future[Outcome], Spec]()
    with (
        ThreadPoolExecutor(len(environments)) as pool,
        JobProcesses("experiments.runs", environments) as processes,
    ):
        try:
            while waiting or running:
                for spec in [s for s in waiting if s.source is None or s.source in outcomes]:
                    waiting.remove(spec)
                    doing = _unreachable(spec, outcomes)
                    if doing:
                        outcomes[spec] = doing
                    else:
                        running[pool.submit(_do_job, spec, workspace, echo, processes)] = spec
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    spec = running.pop(future)
                    outcomes[spec] = future.result()
                    _say(spec, outcomes[spec], echo)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {spec: outcomes[spec] for spec in ordered}


def _do_job(spec: Spec, workspace: Workspace, echo: Echo, processes: JobProcesses) -> Outcome:
    job = JOB.dump_json(Job(spec, workspace)).decode()
    code, errors = processes.run(job, _now_and_then(echo, spec.label))
    if code == FAILED:
        return Outcome(failure=errors.splitlines()[-1])
    if code:
        raise RuntimeError(f"{spec.label}: its process ended with {code}:\n{errors}")
    return Outcome(run_spec(spec, workspace, echo))  # finished: read from its folder


def _unreachable(spec: Spec, outcomes: Outcomes) -> Outcome | None:
    if spec.source and (reason := outcomes[spec.source].failure):
        return Outcome(failure=f"its pre-training failed: {reason}")
    return None


def _say(spec: Spec, outcome: Outcome, echo: Echo) -> None:
    if outcome.run is None:
        echo(f"{spec.label}: failed: {outcome.failure}")
        return
    results = outcome.run.results
    best = f", best epoch {results['best_epoch']}" if "best_epoch" in results else ""
    tested = (
        f"test NDCG@10 {results['test']['ndcg@10']['value']:.4f}"
        if "test" in results
        else f"{results['monitor']} {results['best_validation']:.4f}"
    )
    echo(f"{spec.label}: {tested}{best}")


def _now_and_then(echo: Echo, label: str) -> Echo:
    """Return an echo that hands on a line of a run at most every half minute, with its name."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            echo(f"{label}: {line}")

    return say


def main() -> None:
    """Do the job on the standard input; say on the standard output what happens.

    Ends with `FAILED` and the reason on the standard error where a run fails as a user can expect.
    """
    # In the background a shell has its children ignore interrupts; ours must end a run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = JOB.validate_json(sys.stdin.read())
    try:
        run_spec(job.spec, job.workspace, lambda line: print(line, flush=True))
    except Mmm4RecError as error:
        print(error, file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
