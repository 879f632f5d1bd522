"""The pinned versions against pyproject.toml: where the two disagree, nothing can be installed and all clients would be
skipped. Needs no client."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.server import ROOT

EXTRAS = ("test", "clients", "fuzz")  # those that .ci/clients installs
FREE = {"torch"}  # its builds have versions of their own


def test_every_requirement_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(each) for each in project["dependencies"]]
    wanted += [Requirement(each) for extra in EXTRAS for each in extras[extra]]
    lines = [line for line in Path(__file__).with_name("constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert lines == sorted(lines, key=str.lower)
    assert {each.name for each in wanted} - pins.keys() == FREE
    assert [str(each) for each in wanted if each.name not in FREE and pins[each.name] not in each.specifier] == []
