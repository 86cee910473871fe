"""A secret of a stack under load gets another value, and no request is lost.

The last module, since the stacks have other passwords afterwards than converge.yml says.
"""

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml
from conftest import REPOSITORY, VARIABLES
from testinfra.host import Host

NAMES = ("app_secret_key", "database_password", "database_migrate_password")
OTHER = {"vault_api_token": "stays as it is: \N{SNOWMAN} {{ not a template }}"}
PASSWORD = "correct horse battery"
# What the vault has besides, afterwards.
BESIDES = {
    "app_secret_key": {"vault_app_secret_key_next", "vault_app_secret_key_old"},
    "database_password": {"vault_database_password_next"},
}

# Whoever has a connection, and what is asked of it.
CONNECT = """
import os, psycopg
url = os.environ["DATABASE_URL"]
print(psycopg.connect(url).execute("SELECT session_user, current_user").fetchone())
"""
SLOTS = """
for slot in 0 1; do
  tr '\\0' '\\n' </proc/$(supervisorctl pid guestbook:guestbook_$slot)/environ
done
"""
PIDS = "supervisorctl status | awk '{print $4}'"
LOCK = "test ! -e /srv/guestbook/state/lock.json"


class Vault:
    """An environment's vault, in a folder of group_vars of its own."""

    def __init__(self, folder: Path, entries: dict[str, str]) -> None:
        self.path = folder / "group_vars/all/vault.yml"
        self.path.parent.mkdir(parents=True)
        self.path.write_text(yaml.safe_dump(entries, allow_unicode=True))
        subprocess.run(["ansible-vault", "encrypt", self.path], check=True, cwd=REPOSITORY)
        (folder / "hosts.yml").write_text("all:\n")
        self.inventory = f"--inventory={folder / 'hosts.yml'}"

    def read(self) -> dict[str, str]:
        view = subprocess.run(
            ["ansible-vault", "view", self.path],
            check=True,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        return yaml.safe_load(view.stdout)


@pytest.fixture(scope="module")
def vault(release: str, tmp_path_factory: pytest.TempPathFactory) -> Vault:
    """The vault of the stack, with what converge.yml has, and an entry of somebody's own."""
    entries = {f"vault_{name}": VARIABLES[name] for name in NAMES}
    return Vault(tmp_path_factory.mktemp("vault"), OTHER | entries)


@pytest.fixture
def command(release: str, inventories: list[str], vault: Vault) -> Callable[..., list[str]]:
    """Return the words that rotate a secret of the stack."""

    def words(secret: str, *options: str, **variables: object) -> list[str]:
        plain = {name: value for name, value in VARIABLES.items() if name not in NAMES}
        plain |= {"rotate_path": str(vault.path), "secret": secret} | variables
        return [
            *("ansible-playbook", str(REPOSITORY / "playbooks/rotate.yml")),
            *(*inventories, vault.inventory, f"--limit=split-{release}-*"),
            *(f"--extra-vars={json.dumps(plain)}", *options),
        ]

    return words


@pytest.fixture
def rotate(command: Callable[..., list[str]]) -> Callable[..., tuple[int, str]]:
    """Rotate a secret of the stack; returns the exit status, and the output."""

    def run(*words: str, **variables: object) -> tuple[int, str]:
        done = subprocess.run(
            command(*words, **variables),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode, done.stdout + done.stderr

    return run


class Guest(threading.Thread):
    """Posts with a session and a token from before, and comes back in a new session each time."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.user, self.done = url, uuid.uuid4().hex[:20], threading.Event()
        self.count, self.failures = 0, []
        self.old = requests.Session()
        self.token = self.enter(self.old, "signup", 201)

    def ask(
        self,
        session: requests.Session,
        method: str,
        path: str,
        status: int,
        token: str = "",
        **data,
    ) -> dict:
        self.count += 1
        try:
            answer = session.request(
                *(method, self.url + path),
                json=data or None,
                headers={"X-CSRFToken": token},
                timeout=30,
            )
            if answer.status_code == status:
                return answer.json()
            self.failures.append((method, path, answer.status_code, answer.text[:200]))
        except requests.RequestException as error:
            self.failures.append((method, path, error))
        return {}

    def enter(self, session: requests.Session, how: str, status: int) -> str:
        token = self.ask(session, "GET", "/api/csrf", 200).get("csrf_token", "")
        who = {"name": self.user, "password": PASSWORD}
        return self.ask(session, "POST", f"/api/{how}", status, token, **who).get("csrf_token", "")

    def check_who(self, session: requests.Session) -> None:
        user = self.ask(session, "GET", "/api/me", 200).get("user")
        if not user or user["name"] != self.user:
            self.failures.append(("not logged in", user))

    def run(self) -> None:
        # Each login hashes a password: without a pause, four of them would leave no processor to
        # what is tested.
        while not self.done.wait(1):
            self.check_who(self.old)
            self.ask(self.old, "POST", "/api/posts", 201, self.token, body="hello")
            with requests.Session() as fresh:
                self.enter(fresh, "login", 200)
                self.check_who(fresh)


@pytest.fixture
def guests(url: str) -> Iterator[list[Guest]]:
    """Four guests, as long as the test runs; none may have met anything but what was right."""
    threads = [Guest(url) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.done.set()
        thread.join()
    assert [thread.failures for thread in threads] == [[]] * 4


@pytest.fixture
def guests_go_on(guests: list[Guest], eventually: Callable[..., None]) -> Callable[[], None]:
    """Wait until each of them has done all that a guest does a few times more."""

    def wait() -> None:
        before = [thread.count for thread in guests]
        eventually(
            lambda: all(
                thread.count >= count + 20 or thread.failures
                for thread, count in zip(guests, before, strict=True)
            )
        )

    return wait


def opened(host: Host, url: str, migrate: bool = False) -> bool:
    """Whether the database lets in who comes with this URL."""
    who, option = ("guestbook-deploy", "-m") if migrate else ("guestbook", "")
    run = f"runuser -u {who} -- /srv/guestbook/bin/run {option} env DATABASE_URL=%s python -c %s"
    answer = host.run(run, url, CONNECT)
    assert answer.rc == 0 or "password authentication failed" in answer.stderr
    return answer.rc == 0


def database_url(host: Host, migrate: bool = False) -> str:
    prefix = "/srv/guestbook/serving/" + ("migrate." if migrate else "")
    return host.check_output(f". {prefix}environment && . {prefix}secrets && echo $DATABASE_URL")


def check_that_the_other_login_is_closed(database: Host) -> None:
    columns = "rolcanlogin, rolpassword IS NULL"
    query = f"SELECT {columns} FROM pg_authid WHERE rolname = 'guestbook-rotating'"
    answer = database.check_output("runuser -u postgres -- psql -XAtc %s", query)
    assert answer in ("f|t", "")
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'guestbook-rotating'"
    assert database.check_output("runuser -u postgres -- psql -XAtc %s", query) == "0"


@pytest.fixture(scope="module")
def early(url: str) -> Guest:
    """A guest with a session from before all rotations."""
    return Guest(url)


@pytest.fixture
def killed(
    command: Callable[..., list[str]], vault: Vault, server: Callable[[str], Host]
) -> Callable[[str], None]:
    """Begin to rotate a password of the database, and kill it when some of the slots have it."""

    def run(name: str) -> None:
        rotation = subprocess.Popen(
            command(name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # It leaves a step at work on the server, which Mitogen would end.
            env={**os.environ, "ANSIBLE_STRATEGY": "linear"},
        )

        def wait(changes: Callable[[], object]) -> None:
            before = changes()
            while changes() == before:
                assert rotation.poll() is None
                time.sleep(0.05)

        # The next value, and that it is accepted.
        for _ in range(2):
            wait(lambda: vault.path.stat().st_ino)
        # One slot has what comes next by then, and others have not.
        wait(lambda: server("app-1").check_output(PIDS))
        os.killpg(rotation.pid, signal.SIGKILL)
        rotation.wait()

    return run


# A rotation does not depend on the release.
@pytest.mark.either_release
@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("name", "cut_short"),
    [("app_secret_key", False), ("database_migrate_password", False), ("database_password", True)],
)
def test_no_request_is_lost_while_a_secret_is_rotated(
    rotate: Callable[..., tuple[int, str]],
    killed: Callable[[str], None],
    guests_go_on: Callable[[], None],
    vault: Vault,
    server: Callable[[str], Host],
    name: str,
    cut_short: bool,
) -> None:
    """One that was killed on the way is finished by the next, with the value that it has made."""
    migrate, coming = "migrate" in name, None
    before, url = vault.read(), database_url(server("app-1"), migrate)
    assert opened(server("app-1"), url, migrate)
    guests_go_on()
    if cut_short:
        killed(name)
        coming = vault.read()[f"vault_{name}_next"]
    status, said = rotate(name, app_break_lock=cut_short)
    assert status == 0, said
    guests_go_on()
    after = vault.read()
    assert after.keys() == before.keys() | BESIDES.get(name, set())
    changed = {key for key in before if before[key] != after[key]} - BESIDES.get(name, set())
    assert changed == {f"vault_{name}"}
    assert coming in (None, after[f"vault_{name}"])
    assert not after.get(f"vault_{name}_next")
    assert not [value for value in after.values() if value and value in said]
    for role in ("app-1", "app-2"):
        environment = server(role).check_output(SLOTS)
        if not migrate:
            assert environment.count(after[f"vault_{name}"]) == 2
        assert f"{name}-rotating" not in environment
        server(role).check_output(LOCK)
    if "database" in name:
        assert not opened(server("app-1"), url, migrate)
        assert opened(server("app-1"), database_url(server("app-1"), migrate), migrate)
        check_that_the_other_login_is_closed(server("db"))
    else:
        assert after["vault_app_secret_key_old"] == before["vault_app_secret_key"]


@pytest.mark.either_release
def test_former_key_is_accepted_until_it_is_forgotten(
    rotate: Callable[..., tuple[int, str]], early: Guest, vault: Vault
) -> None:
    early.check_who(early.old)
    assert early.failures == []
    status, said = rotate("app_secret_key_old")
    assert status == 0, said
    assert not vault.read()["vault_app_secret_key_old"]
    assert early.ask(early.old, "GET", "/api/me", 200) == {"user": None}
    early.enter(early.old, "login", 200)
    early.check_who(early.old)
    assert early.failures == []


@pytest.mark.either_release
def test_dry_run_says_what_it_would_do(
    rotate: Callable[..., tuple[int, str]], vault: Vault, server: Callable[[str], Host]
) -> None:
    before, slots = vault.path.read_bytes(), server("app-1").check_output(PIDS)
    status, said = rotate("database_password", "--check")
    assert status == 0, said
    assert "database_password would get a new value" in said
    assert vault.path.read_bytes() == before
    assert server("app-1").check_output(PIDS) == slots
    server("app-1").check_output(LOCK)
