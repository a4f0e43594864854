"""Where the data, runs and reports of a reproduction lie, and which domains it is about.

mini     <folder>/demo/...    the miniature Amazon of `mmm4rec demo`; made if it is not there
amazon   <folder>/data, runs  the paper's five pre-training and five downstream domains
reports  <folder>/reports/<world>/<table>/
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.presets import find_preset
from mmm4rec.errors import ConfigError, DataError
from mmm4rec.run_folder import Echo
from mmm4rec.settings import load_config, merge_settings, read_preset
from pipeline.build import prepare_domain
from pipeline.domains import DOWNSTREAM, PRETRAINING, name_domain
from pipeline.schema import Manifest, prepared_dir, read_manifest
from pipeline.synthetic import MINIATURE, World, build_world, serve

MINI, AMAZON = "mini", "amazon"


@dataclass(frozen=True)
class Workspace:
    """One world: its folders, its domains, and the settings that all its runs share.

    Attributes:
        name: of the world.
        data_dir: holds prepared/.
        runs_dir: holds all runs.
        reports_dir: holds one folder per table.
        pretraining: names of the domains to pre-train on, all together.
        downstream: names of the domains to fine-tune on, each for itself.
        presets: what this world adds to the presets `pretrain` and `finetune`.
        settings: `section.key=value`, over all presets of every run.
    """

    name: str
    data_dir: Path
    runs_dir: Path
    reports_dir: Path
    pretraining: tuple[str, ...]
    downstream: tuple[str, ...]
    presets: dict[str, str]
    settings: tuple[str, ...] = ()

    def manifest(self, domain: str) -> Manifest | None:
        """Return the manifest of a domain, None where it is not prepared (by this version)."""
        try:
            return read_manifest(prepared_dir(self.data_dir, domain))
        except DataError:
            return None

    def missing(self, domains: tuple[str, ...]) -> list[str]:
        """Return those domains that are not prepared."""
        return [domain for domain in domains if self.manifest(domain) is None]

    @property
    def ready(self) -> list[str]:
        """The downstream domains that are prepared."""
        return [domain for domain in self.downstream if self.manifest(domain) is not None]

    @property
    def can_pretrain(self) -> bool:
        """Whether all domains to pre-train on are prepared, or will be (see `ensure_data`)."""
        return self.name == MINI or not self.missing(self.pretraining)

    def gaps(self) -> list[str]:
        """Say what is not prepared, what that leaves out, and the command that makes it."""
        lines = [
            f"{domain} is not prepared and is left out. Next: {self._prepare_command(domain)}"
            for domain in self.missing(self.downstream)
        ]
        if absent := self.missing(self.pretraining):
            commands = " && ".join(self._prepare_command(domain) for domain in absent)
            lines.append(
                f"Pre-trained rows are left out: {', '.join(absent)} of the domains to pre-train "
                f"on {'is' if len(absent) == 1 else 'are'} not prepared. Next: {commands}"
            )
        return lines

    def _prepare_command(self, domain: str) -> str:
        if self.name == MINI:
            return f"mmm4rec demo --folder {self.data_dir.parent}"
        return f"mmm4rec prepare --domain {domain} --data-dir {self.data_dir}"


def open_workspace(world: str, folder: Path, domains: list[str] | None = None) -> Workspace:
    """Describe a world; nothing is read or written.

    Args:
        world: `mini` or `amazon`.
        folder: holds everything.
        domains: the downstream domains to keep, by short or full name; None: all.

    Raises:
        ConfigError: there is no such world, or a domain is not one of its downstream domains.
    """
    if world not in (MINI, AMAZON):
        raise ConfigError(
            f"no world {world!r}: allowed are {MINI}, {AMAZON}. Next: --world {AMAZON}"
        )
    whole = _amazon(folder) if world == AMAZON else miniature(folder / "demo")
    whole = replace(whole, reports_dir=folder / "reports" / world)
    if not domains:
        return whole
    names = [name_domain(domain).name for domain in domains]
    for name in names:
        if name not in whole.downstream:
            raise ConfigError(
                f"--domain {name}: allowed are {', '.join(whole.downstream)}, the downstream "
                f"domains of the world {world}. Next: --domain {whole.downstream[0]}"
            )
    return replace(whole, downstream=tuple(d for d in whole.downstream if d in names))


def miniature(folder: Path) -> Workspace:
    """Describe the miniature Amazon below a folder, as `mmm4rec demo` lays it out."""
    return Workspace(
        name=MINI,
        data_dir=folder / "data",
        runs_dir=folder / "runs",
        reports_dir=folder / "reports",
        pretraining=tuple(domain.name for domain in MINIATURE.pretraining),
        downstream=tuple(domain.name for domain in MINIATURE.downstream),
        presets={"pretrain": "demo-pretrain", "finetune": "demo-finetune"},
    )


def _amazon(folder: Path) -> Workspace:
    return Workspace(
        name=AMAZON,
        data_dir=folder / "data",
        runs_dir=folder / "runs",
        reports_dir=folder / "reports",
        pretraining=tuple(domain.name for domain in PRETRAINING),
        downstream=tuple(domain.name for domain in DOWNSTREAM),
        presets={},
    )


def ensure_data(workspace: Workspace, echo: Echo) -> None:
    """Make the miniature where it is not prepared; of another world nothing can be made here."""
    if workspace.name == MINI and workspace.missing(workspace.pretraining + workspace.downstream):
        prepare_miniature(workspace.data_dir.parent, echo)


def prepare_miniature(folder: Path, echo: Echo) -> World:
    """Build the miniature Amazon and prepare its domains; what is there is not made again."""
    world = build_world(folder / "world", seed=0)
    base = merge_settings(
        read_preset(find_preset("prepare")), {"data": {"data_dir": str(folder / "data")}}
    )
    settings = load_config(find_preset("demo"), base=base)
    with serve(world) as base_url:
        echo(f"a miniature Amazon in {world.folder}, its pictures at {base_url}")
        for domain in world.domains:
            source = str(world.source(domain))
            manifest = prepare_domain(domain, settings, source=source, echo=lambda line: None)
            final, images = manifest.counts[-1], manifest.card["images"]
            failed = ", ".join(f"{n} {error}" for error, n in images["urls"].items())
            echo(
                f"prepared {domain}: {final.users} users, {final.items} items, "
                f"{final.interactions} interactions; URLs: {failed}"
            )
    return world
