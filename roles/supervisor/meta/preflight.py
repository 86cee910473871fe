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


def check_files(server: Server) -> Iterator[Problem]:
    """A program of that name that somebody has written would be overwritten."""
    theirs = (server.found.get("supervisor") or {}).get("programs") or []
    listed = [
        *entries(server, "supervisor_default_programs"),
        *entries(server, "supervisor_programs"),
    ]
    for name in dict.fromkeys(x.get("name") for x in listed):
        if f"{name}.conf" in theirs:
            app, path = server.values.get("app_name"), f"/etc/supervisor/conf.d/{name}.conf"
            yield Problem(
                "app_name" if name == app else "supervisor_programs",
                f"has the program {name!r}, and {server.name} has {path} already, which is not from"
                " Carafe",
                f"choose another name; if nobody needs theirs: sudo supervisorctl stop {name}:* &&"
                f" sudo rm {path}",
            )


CHECKS = (check_programs, check_files)
