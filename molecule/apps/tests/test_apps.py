"""Apps that nobody here wrote, each deployed as its people would, and what it is for used.

Each has a project of its own: an inventory, which is counted, and a few lines that pin it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
FILES = Path(__file__).parents[1] / "files"
BIN = Path(sys.executable).parent
# As docs/how-to/a-project-of-your-own.md has it, in one line.
HOSTS = "prod: {{hosts: {{server: {server}}}, vars: {{ansible_group_priority: 10}}}}\n"


@pytest.fixture(scope="module")
def server(host: Host) -> dict[str, object]:
    """How the server is reached by ssh."""
    name = host.check_output("hostname")
    instances = yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
    (mine,) = (x for x in instances if x["instance"] == name)
    return {
        "ansible_host": mine["address"],
        "ansible_port": mine["port"],
        "ansible_user": mine["user"],
        "ansible_ssh_private_key_file": mine["identity_file"],
        "ansible_become_password": mine["become_pass"],
    }


class Project:
    """A folder with an inventory and an app, whose people have the collection."""

    def __init__(self, name: str, folder: Path, server: dict[str, object]):
        self.folder = folder
        variables = folder / "inventory/prod/group_vars/prod"
        variables.mkdir(parents=True)
        line = yaml.safe_dump(server, default_flow_style=True, width=9999).strip()
        hosts = HOSTS.format(server=line)
        (folder / "inventory/prod/hosts.yml").write_text(hosts)
        main = (FILES / name / "main.yml").read_text()
        (variables / "main.yml").write_text(main)
        said = [x for x in (hosts + main).splitlines() if not x.startswith(("#", "---"))]
        assert len(said) <= 12, f"{name} needs {len(said)} lines"
        # What prepare.yml has made for it: a lock, or the project that the app's own command makes.
        (cache,) = (REPOSITORY / ".cache/apps").iterdir()
        for part in (cache / name, FILES / name / "app"):
            if part.is_dir():
                shutil.copytree(part, folder / "app", dirs_exist_ok=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE"))},
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "false",
            # The verifier's: six first runs of the whole site take a third less with it.
            "ANSIBLE_STRATEGY": os.environ["ANSIBLE_STRATEGY"],
        }
        self.run("vault")

    def run(self, playbook: str, *options: str) -> str:
        done = subprocess.run(
            [
                *(BIN / "ansible-playbook", f"carafe.stack.{playbook}"),
                *("-i", "inventory/prod", *options),
            ],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def secret(self) -> str:
        """What the app's administrator is let in by: the vault's, as its inventory says."""
        vault = "inventory/prod/group_vars/prod/vault.yml"
        text = subprocess.run(
            [BIN / "ansible-vault", "view", vault],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return yaml.safe_load(text)["vault_app_secret_key"]


@pytest.fixture(scope="module")
def deploy(
    server: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Project]:
    """Make an app's project, and run site.yml."""

    def run(name: str) -> Project:
        project = Project(name, tmp_path_factory.mktemp(name), server)
        # Where TLS leaves through a proxy of the house, npm knows its authority by this.
        bundle = os.environ.get("NODE_EXTRA_CA_CERTS")
        house = {"app_install_environment": {"NODE_EXTRA_CA_CERTS": bundle}} if bundle else {}
        project.run("site", "-e", json.dumps(house))
        return project

    return run


@pytest.fixture
def visitor(
    host: Host,
    published: Callable[[int], str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], requests.Session]:
    """Visit https://<app>.test from outside, as a browser that knows the server's own CA."""
    place = published(443).split(":")
    resolve = socket.getaddrinfo

    def look_up(name: str, port: object, *more: object, **options: object) -> list[tuple]:
        mine = str(name).endswith(".test")
        return resolve(*(place if mine else (name, port)), *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    def begin(**login: str) -> requests.Session:
        authority = tmp_path / "ca.crt"
        authority.write_text(host.file("/var/lib/certificates/ca.crt").content_string)
        session = requests.Session()
        session.verify = str(authority)
        # What the environment says of authorities would beat it.
        session.trust_env = False
        if login:
            ((user, password),) = login.items()
            session.auth = (user, password)
        return session

    return begin


EVENT = """\
BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//tests//EN
BEGIN:VEVENT
UID:launch
DTSTAMP:20260101T000000Z
DTSTART:20260102T100000Z
SUMMARY:Launch
END:VEVENT
END:VCALENDAR
"""


def test_a_calendar_from_a_lock(
    host: Host, deploy: Callable[[str], Project], visitor: Callable[..., requests.Session]
) -> None:
    """Radicale, by uv.lock: an event is written and found again by its day."""
    project = deploy("radicale")
    ada = visitor(ada="only-for-this-test")
    calendar = "https://radicale.test/ada/diary/"
    assert visitor().request("PROPFIND", calendar).status_code == 401
    assert ada.request("MKCALENDAR", calendar).status_code == 201
    assert ada.put(calendar + "launch.ics", EVENT).status_code == 201
    found = ada.request(
        "REPORT",
        calendar,
        headers={"Depth": "1"},
        data="""<c:calendar-query xmlns:c="urn:ietf:params:xml:ns:caldav" xmlns:d="DAV:">
            <d:prop><d:getetag/></d:prop><c:filter><c:comp-filter name="VCALENDAR">
            <c:comp-filter name="VEVENT">
            <c:time-range start="20260102T000000Z" end="20260103T000000Z"/>
            </c:comp-filter></c:comp-filter></c:filter></c:calendar-query>""",
    )
    assert "/ada/diary/launch.ics" in found.text
    lock = (project.folder / "app/uv.lock").read_text()
    installed = host.check_output(
        "/srv/radicale/bin/run python -m pip freeze --disable-pip-version-check"
    )
    for package in ("radicale", "vobject"):
        version = lock.partition(f'name = "{package}"\nversion = "')[2].partition('"')[0]
        assert f"{package}=={version}" in installed.lower()


def test_an_app_that_migrates_itself(
    deploy: Callable[[str], Project], visitor: Callable[..., requests.Session]
) -> None:
    """I hate money, in PostgreSQL: a group's bill is settled."""
    deploy("ihatemoney")
    everybody = visitor()
    made = everybody.post(
        "https://ihatemoney.test/api/projects",
        data={
            **{"name": "Trip", "id": "trip", "password": "only-for-this-test"},
            **{"contact_email": "ada@example.com", "default_currency": "XXX"},
        },
    )
    assert made.status_code == 201, made.text
    group = visitor(trip="only-for-this-test")
    members = [
        group.post("https://ihatemoney.test/api/projects/trip/members", data={"name": name}).json()
        for name in ("Ada", "Charles")
    ]
    bill = {"date": "2026-01-02", "what": "Engine", "payer": members[0], "payed_for": members}
    added = group.post(
        "https://ihatemoney.test/api/projects/trip/bills", data=bill | {"amount": "10"}
    )
    assert added.status_code == 201, added.text
    (ada, charles) = group.get("https://ihatemoney.test/api/projects/trip/statistics").json()
    assert (ada["balance"], charles["balance"]) == (5, -5)


def test_uploads(
    deploy: Callable[[str], Project], visitor: Callable[..., requests.Session]
) -> None:
    """WsgiDAV: a large file is put there, moved, and read again."""
    project = deploy("wsgidav")
    assert visitor().get("https://wsgidav.test/").status_code == 401
    ada = visitor(ada=project.secret)
    content = os.urandom(30 << 20)
    assert ada.put("https://wsgidav.test/film", content).status_code == 201
    moved = ada.request(
        "MOVE",
        "https://wsgidav.test/film",
        headers={"Destination": "https://wsgidav.test/engine%20film"},
    )
    assert moved.status_code == 201
    assert ada.get("https://wsgidav.test/engine%20film").content == content
    assert "engine film" in ada.get("https://wsgidav.test/").text


# A second of silence comes into the folder.
SONG = """
import os, wave
os.makedirs("/srv/supysonic/shared/music/Ada")
with wave.open("/srv/supysonic/shared/music/Ada/Note G.wav", "wb") as song:
    song.setnchannels(1), song.setsampwidth(1), song.setframerate(8000)
    song.writeframes(bytes(8000))
"""


def test_a_worker(
    host: Host,
    deploy: Callable[[str], Project],
    visitor: Callable[..., requests.Session],
    eventually: Callable[..., None],
) -> None:
    """Supysonic: its daemon finds music that comes into the folder, and visitors hear it."""
    project = deploy("supysonic")
    host.check_output("runuser -u supysonic -- python3 -c %s", SONG)
    ada = visitor()

    def ask(method: str, **options: str) -> requests.Response:
        return ada.get(
            f"https://supysonic.test/rest/{method}.view",
            params={"u": "ada", "p": project.secret, "v": "1.9.0", "c": "tests", "f": "json"}
            | options,
        )

    def songs() -> list[dict]:
        answer = ask("search2", query="Note G").json()["subsonic-response"]
        return answer["searchResult2"].get("song", [])

    eventually(lambda: len(songs()) == 1)
    assert ask("stream", id=songs()[0]["id"]).content.startswith(b"RIFF")


def test_asgi(deploy: Callable[[str], Project], visitor: Callable[..., requests.Session]) -> None:
    """Datasette: a row is written, and found by SQL."""
    deploy("datasette")
    everybody = visitor()
    added = everybody.post("https://datasette.test/notes/add?_json=1", data={"text": "Note G"})
    assert added.json()["ok"], added.text
    found = everybody.get(
        "https://datasette.test/notes.json",
        params={"sql": "select text from notes where text like 'Note%'", "_shape": "arrayfirst"},
    )
    assert found.json() == ["Note G"]
    assert "Note G" in everybody.get("https://datasette.test/notes/notes").text


def test_a_front_end_build(
    deploy: Callable[[str], Project], visitor: Callable[..., requests.Session]
) -> None:
    """Wagtail: what npm has bundled comes with the page, and an editor publishes."""
    project = deploy("wagtail")
    editor = visitor()
    page = editor.get("https://wagtail.test/")
    script = re.search(r'src="(/static/js/mysite\.[0-9a-f]+\.js)"', page.text)[1]
    bundle = editor.get(f"https://wagtail.test{script}")
    assert "confetti" in bundle.text
    assert "immutable" in bundle.headers["Cache-Control"]
    login = "https://wagtail.test/admin/login/"
    editor.get(login)
    form = {
        **{"username": "ada", "password": project.secret, "next": "/admin/"},
        "csrfmiddlewaretoken": editor.cookies["csrftoken"],
    }
    welcome = editor.post(login, data=form, headers={"Referer": login})
    assert welcome.url == "https://wagtail.test/admin/", welcome.text
