"""`mmm4rec reproduce`: from prepared domains to tables beside the published ones."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments import main_table, table5, table6
from experiments.cells import specs_of_domains
from experiments.planning import format_plan, plan_runs
from experiments.report import Section, write_report
from experiments.runs import Outcomes, execute, settings_of
from experiments.studies import STUDIES
from experiments.studies.study import Study
from experiments.workspace import Workspace, ensure_data, open_workspace
from mmm4rec.errors import ConfigError
from mmm4rec.run_folder import Echo, environment

REPORTS: dict[str, Study] = {
    **{
        table.NAME: Study(table.TITLE, partial(specs_of_domains, table.ways), table.sections)
        for table in (table5, table6, main_table)
    },
    **STUDIES,
}
ALL_STUDIES = "studies"


def reproduce(
    tables: list[str],
    *,
    world: str,
    seeds: int,
    folder: Path,
    plan: bool = False,
    jobs: int | None = None,
    domains: list[str] | None = None,
    settings: list[str] | None = None,
    echo: Echo = print,
) -> None:
    """Do the runs that some tables need, each once, and write each table's report after its runs.

    What has been done is not done again; what was interrupted is carried on.

    Args:
        tables: keys of `REPORTS`; `studies` stands for all studies.
        world: `mini` or `amazon`.
        seeds: how many, from 0.
        folder: holds data, runs and `reports/<world>/<table>/`.
        plan: only say what would be done; nothing is written.
        jobs: runs at once; None: one for each GPU.
        domains: the downstream domains to keep; None: all.
        settings: `section.key=value` for every run, over all presets.
        echo: told what happens.

    Raises:
        ConfigError: a table, the world, a domain, a number or a setting is not allowed.
    """
    reports = find_reports(tables)
    _check_counts(seeds, jobs)
    workspace = open_workspace(world, folder, domains)
    workspace = replace(workspace, settings=tuple(settings or ()))
    specs = [spec for report in reports.values() for spec in report.specs(workspace, seeds)]
    for spec in specs:
        settings_of(spec, workspace)  # what is not allowed is said before anything begins
    if plan:
        echo(format_plan(plan_runs(specs, workspace, echo), workspace.gaps()))
        return
    ensure_data(workspace, echo)
    missing = set(workspace.missing(workspace.downstream))
    for line in workspace.gaps():
        echo(line)
    outcomes: Outcomes = {}
    for name, report in reports.items():
        report.prepare(workspace, echo)
        wanted = [s for s in report.specs(workspace, seeds) if not missing & set(s.domains)]
        new = [spec for spec in wanted if spec not in outcomes]
        outcomes |= execute(new, workspace, echo=echo, jobs=jobs)
        target = workspace.reports_dir / name
        sections = [*_gaps(workspace), *report.sections(workspace, seeds, outcomes)]
        write_report(
            target,
            report.title,
            sections,
            command=_command(name, workspace, seeds, domains),
            environment=environment(),
        )
        echo(f"written: {target / 'report.md'}, {target / 'report.html'}")


def find_reports(names: list[str]) -> dict[str, Study]:
    """Return the reports of these names, each once.

    Raises:
        ConfigError: there is none of a name, or no name.
    """
    known = [*REPORTS, ALL_STUDIES]
    for name in names or ["(none)"]:
        if name not in known:
            raise ConfigError(
                f"no table {name!r}: allowed are {', '.join(known)}. "
                f"Next: mmm4rec reproduce {known[0]}"
            )
    expanded = [each for name in names for each in (STUDIES if name == ALL_STUDIES else [name])]
    return {name: REPORTS[name] for name in expanded}


def _check_counts(seeds: int, jobs: int | None) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: allowed are 1 and more. Next: --seeds 1")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: allowed are 1 and more. Next: --jobs 1")


def _gaps(workspace: Workspace) -> list[Section]:
    lines = workspace.gaps()
    return [Section("What is missing", "\n\n".join(lines), [], [])] if lines else []


def _command(table: str, workspace: Workspace, seeds: int, domains: list[str] | None) -> str:
    words = ["mmm4rec", "reproduce", table, "--world", workspace.name, "--seeds", str(seeds)]
    for domain in domains or []:
        words += ["--domain", domain]
    for setting in workspace.settings:
        words += ["--set", setting]
    return shlex.join(words)
