"""The stack goes from all of its servers, of both releases, with its data at home."""

import tarfile
from collections.abc import Callable
from pathlib import Path

from conftest import left
from testinfra.host import Host

ROLES = ("db", "app-1", "app-2", "web")


def test_another_environment_s_app_stays_on_a_server_that_has_its_database_alone(
    server: Callable[[str], Host], playbook: Callable[..., tuple[int, str]]
) -> None:
    status, said = playbook("remove", app_confirm="guestbook", app_environment_name="other")
    assert status == 2, said
    told = "split-13-db has the app guestbook of the environment inventory"
    assert told in " ".join(said.split()), said
    assert "guestbook" in server("db").check_output("runuser -u postgres -- psql -XAtl")


def test_all_of_it_goes_from_each_server(
    server: Callable[[str], Host], playbook: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    server("app-1").check_output("echo sent >/srv/guestbook/shared/letter")
    status, said = playbook(
        "remove", app_confirm="guestbook", app_dump_directory=str(tmp_path / "kept")
    )
    assert status == 0, said
    assert {role: left(server(role)) for role in ROLES} == {role: set() for role in ROLES}
    (dump,) = (tmp_path / "kept").glob("split-13-db-*-guestbook.dump")
    assert dump.read_bytes()[:5] == b"PGDMP"
    (shared,) = (tmp_path / "kept").glob("split-13-app-1-*-shared.tar")
    with tarfile.open(shared) as tar:
        assert tar.extractfile("./letter").read() == b"sent\n"
