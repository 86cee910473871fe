"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    check_environment,
    check_file_names,
    check_twins,
    entries,
)

RANGES = {"supervisor_programs.numprocs": (1, None)}


def check_programs(server: Server) -> Iterator[Problem]:
    yield from check_twins(server, "supervisor_programs", "programs")
    yield from check_file_names(server, "supervisor_programs", "programs")
    for program in entries(server, "supervisor_programs"):
        yield from check_environment("supervisor_programs", program.get("environment"))


CHECKS = (check_programs,)
