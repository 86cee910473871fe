"""The corpus of hostile requests, as data: molecule/nginx sends them to a real nginx."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from conftest import ROOT, load_yaml

CASES = load_yaml(ROOT / "molecule/nginx/files/hostile.yml")["cases"]


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_says_where_it_comes_from_and_what_becomes_of_it(case: dict[str, Any]) -> None:
    always = {"name", "source", "raw"}
    optional = {"shut", "location", "gunicorn", "tls"}
    assert set(case) - optional in (always | {"refused"}, always | {"answers", "seen"})
    assert case["source"]
    case["raw"].encode("latin-1")


def test_they_are_read_by_the_gunicorn_that_is_deployed() -> None:
    specs = load_yaml(ROOT / "roles/gunicorn/meta/argument_specs.yml")["argument_specs"]
    assert version("gunicorn") == specs["main"]["options"]["gunicorn_version"]["default"]
