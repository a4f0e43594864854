"""A miniature Amazon: native raw files and an image server, with a planted structure.

    <folder>/<Domain>/<Domain>.csv            asin,user,rating,Unix seconds; no header
    <folder>/<Domain>/meta_<Domain>.json.gz   one JSON object per line
    <folder>/www/                             the pictures that the server serves

All of it follows from the seed. Looks, themes and weights are written nowhere: they show only in
pictures, words and purchases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmm4rec.errors import ConfigError
from pipeline.schema import atomic_path
from pipeline.synthetic.behaviour import (
    MAX_LENGTH,
    MIN_LENGTH,
    NUM_LOOKS,
    NUM_THEMES,
    FloatArray,
    IntArray,
    Latents,
    Rule,
    context,
    draw_days,
    draw_latents,
    draw_lengths,
    draw_rule,
    draw_sequences,
    next_item_probabilities,
    rank_metrics,
)
from pipeline.synthetic.catalogue import Catalogue, draw_catalogue, write_metadata
from pipeline.synthetic.items import VOCABULARIES
from pipeline.synthetic.ratings import CORE, draw_ratings, write_ratings
from pipeline.synthetic.shop import IMAGE_PATH, PREFERRED_PORT, Fault, base_url, serve_folder

WWW = "www"


@dataclass(frozen=True)
class DomainSpec:
    """Size of one domain, after the 5-core.

    Attributes:
        name: a key of `items.VOCABULARIES`.
        num_users: users of the core.
        num_items: items of the core.
        mean_length: interactions per user on average, 5..15.
    """

    name: str
    num_users: int
    num_items: int
    mean_length: float


@dataclass(frozen=True)
class WorldSpec:
    """Domains for pre-training, domains downstream, and the strength of the rule (0..1).

    The rule is easy to see in the pre-training domains together and hard in one downstream
    domain alone, whose users give under 700 pairs of history and next item to train on.
    """

    pretraining: tuple[DomainSpec, ...]
    downstream: tuple[DomainSpec, ...]
    follow: float = 0.8


MINIATURE = WorldSpec(
    pretraining=(
        DomainSpec("MiniFood", 720, 210, 8.0),
        DomainSpec("MiniHome", 700, 210, 8.0),
        DomainSpec("MiniMovies", 680, 200, 8.0),
    ),
    downstream=(
        DomainSpec("MiniOffice", 260, 125, 5.6),
        DomainSpec("MiniArts", 250, 120, 5.6),
    ),
)


@dataclass(frozen=True)
class Domain:
    """One domain as it was drawn.

    Attributes:
        catalogue: what the shop lists; its first `len(latents.looks)` items are the core.
        latents: hidden properties of the core's items, in the same order.
        next_PTN: probability of each next item, see `behaviour.next_item_probabilities`.
        sequences: item indices, one array per user, oldest first.
        days: day of each interaction since 1970-01-01, likewise.
        ledger: how many there are of everything that was planted.
    """

    catalogue: Catalogue
    latents: Latents
    next_PTN: FloatArray
    sequences: list[IntArray]
    days: list[IntArray]
    ledger: dict[str, int]

    def ceiling(self, cutoff: int = 10) -> dict[str, float]:
        """Metrics of the best predictor: it knows rule and weights; targets are last items."""
        contexts = [context(self.latents, sequence[:-1]) for sequence in self.sequences]
        scores_UN = np.stack([self.next_PTN[look_theme] for look_theme in contexts])
        return rank_metrics(scores_UN, self._targets(), cutoff)

    def popularity(self, cutoff: int = 10) -> dict[str, float]:
        """Metrics of counting, over all but each user's last two interactions."""
        train = np.concatenate([sequence[:-2] for sequence in self.sequences])
        counts_N = np.bincount(train, minlength=len(self.latents.looks)).astype(np.float64)
        targets_U = self._targets()
        scores_UN = np.broadcast_to(counts_N, (len(targets_U), len(counts_N)))
        return rank_metrics(scores_UN, targets_U, cutoff)

    def _targets(self) -> IntArray:
        return np.array([sequence[-1] for sequence in self.sequences])


@dataclass(frozen=True)
class World:
    """A miniature Amazon on disk and, for tests, the truth behind it.

    Attributes:
        folder: holds one folder of raw files per domain.
        pretraining: names of the domains to pre-train on.
        downstream: names of the domains to fine-tune on.
        domains: everything about each, in that order.
    """

    folder: Path
    pretraining: list[str]
    downstream: list[str]
    domains: dict[str, Domain]

    def source(self, domain: str) -> Path:
        """Return the folder with the raw files of a domain."""
        return self.folder / domain

    @property
    def ledger(self) -> dict[str, dict[str, int]]:
        """How many of each imperfection every domain has."""
        return {name: domain.ledger for name, domain in self.domains.items()}

    @property
    def faults(self) -> dict[str, Fault]:
        """What the server does instead of answering, by URL path."""
        return {
            path: fault
            for domain in self.domains.values()
            for path, fault in domain.catalogue.faults.items()
        }


def build_world(folder: Path, seed: int, spec: WorldSpec = MINIATURE) -> World:
    """Draw a world and write its files; the same bytes for the same seed and size.

    Args:
        folder: gets the raw files of each domain, in a folder of its own, and the pictures;
            earlier ones are replaced.
        seed: 0 or more.
        spec: how large.

    Raises:
        ConfigError: a domain is unknown, or too small or too sparse for the 5-core.
    """
    specs = (*spec.pretraining, *spec.downstream)
    for domain_spec in specs:
        _check(domain_spec)
    rule = draw_rule(np.random.default_rng([seed, 0]), spec.follow)
    domains = {}
    with atomic_path(folder / WWW) as www:
        www.joinpath(IMAGE_PATH.lstrip("/")).mkdir(parents=True)
        for number, domain_spec in enumerate(specs, start=1):
            rng = np.random.default_rng([seed, number])
            domains[domain_spec.name] = _build_domain(rng, folder, www, rule, domain_spec)
    return World(
        folder,
        [domain_spec.name for domain_spec in spec.pretraining],
        [domain_spec.name for domain_spec in spec.downstream],
        domains,
    )


@contextlib.contextmanager
def serve(world: World) -> Iterator[str]:
    """Serve the world's pictures on this machine; yield the base URL.

    The metadata is written again with the URLs that are served: the same bytes as long as the
    usual port is free, so that `prepare` finds its inputs unchanged from run to run.
    """
    with serve_folder(world.folder / WWW, world.faults) as url:
        for name, domain in world.domains.items():
            write_metadata(world.source(name), name, domain.catalogue, url)
        yield url


def _build_domain(
    rng: np.random.Generator, folder: Path, www: Path, rule: Rule, spec: DomainSpec
) -> Domain:
    # Streams of their own: more pictures or words never change who buys what.
    behaviour_rng, catalogue_rng, ratings_rng = rng.spawn(3)
    latents = draw_latents(behaviour_rng, spec.num_items)
    next_PTN = next_item_probabilities(rule, latents)
    lengths_U = draw_lengths(behaviour_rng, spec.num_users, spec.mean_length)
    sequences = draw_sequences(behaviour_rng, next_PTN, latents, lengths_U)
    _check_core(spec, sequences)
    days = [draw_days(behaviour_rng, sequence) for sequence in sequences]
    catalogue = draw_catalogue(catalogue_rng, www, latents, VOCABULARIES[spec.name])
    rows, row_ledger = draw_ratings(ratings_rng, catalogue, sequences, days)
    write_ratings(folder / spec.name, spec.name, rows)
    write_metadata(folder / spec.name, spec.name, catalogue, base_url(PREFERRED_PORT))
    ledger = {**row_ledger, **catalogue.ledger}
    return Domain(catalogue, latents, next_PTN, sequences, days, ledger)


def _check(spec: DomainSpec) -> None:
    if spec.name not in VOCABULARIES:
        raise ConfigError(
            f"domain {spec.name!r} has no vocabulary; known: {', '.join(VOCABULARIES)}"
        )
    if spec.num_items < NUM_LOOKS * NUM_THEMES:
        raise ConfigError(
            f"{spec.name}: num_items ({spec.num_items}) must be at least "
            f"{NUM_LOOKS * NUM_THEMES}, one per look and theme"
        )
    if not MIN_LENGTH <= spec.mean_length <= MAX_LENGTH:
        raise ConfigError(
            f"{spec.name}: mean_length ({spec.mean_length}) must be {MIN_LENGTH} to {MAX_LENGTH}"
        )


def _check_core(spec: DomainSpec, sequences: list[IntArray]) -> None:
    bought = np.bincount(np.concatenate(sequences), minlength=spec.num_items)
    if bought.min() < CORE:
        raise ConfigError(
            f"{spec.name}: an item is bought {bought.min()} times, {CORE} keep it in the core: "
            f"more than {spec.num_users} users or fewer than {spec.num_items} items are needed"
        )
