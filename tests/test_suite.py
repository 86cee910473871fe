"""Which tests of a scenario run on which release."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, load_module

pytestmark = pytest.mark.any_python

SUITE = load_module(ROOT / "molecule/conftest.py", "suite_conftest")


def looks(host: object) -> None: ...
def runs(host: object, converge: object) -> None: ...


def case(function: Callable, release: str, *markers: str, name: str = "") -> Any:
    return SimpleNamespace(
        nodeid=f"test_x.py::{function.__name__}{name}[docker://carafe-nginx-1-nginx-{release}]",
        function=function,
        get_closest_marker=lambda marker: marker if marker in markers else None,
    )


def run_on(*items: Any) -> list[str]:
    """Return the releases on which these cases are run."""
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: None))
    left = list(items)
    SUITE.pytest_collection_modifyitems(config, left)
    return [SUITE.release_of(item) for item in left]


@pytest.mark.parametrize(
    ("function", "markers", "releases"),
    [
        (looks, [], ["12", "13"]),
        (looks, ["newest_release"], ["13"]),
        (runs, [], ["13"]),
        (runs, ["each_release"], ["12", "13"]),
        (runs, ["either_release"], ["12"]),
    ],
)
def test_what_needs_one_release_is_run_on_one(
    function: Callable, markers: list[str], releases: list[str]
) -> None:
    assert run_on(*(case(function, release, *markers) for release in ("12", "13"))) == releases


def test_cases_are_shared_out() -> None:
    cases = [
        case(looks, release, "either_release", name=name)
        for release in ("12", "13")
        for name in "abcd"
    ]
    assert run_on(*cases) == ["12", "12", "13", "13"]


@pytest.mark.parametrize("release", ["12", "13"])
@pytest.mark.parametrize("marker", ["newest_release", "either_release"])
def test_with_servers_of_one_release_all_is_run(release: str, marker: str) -> None:
    assert run_on(case(looks, release, marker), case(runs, release)) == [release, release]
