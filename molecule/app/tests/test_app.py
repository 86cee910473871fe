"""What the role makes of an app, wherever its code comes from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from testinfra.host import Host

ENVIRONMENT = json.loads((Path(__file__).parents[1] / "files/environment.json").read_text())
PRINT_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def as_user(host: Host, user: str, command: str):
    """Run a shell command as a user of the server, logged in or not."""
    return host.run("runuser -u %s -- sh -c %s", user, command)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_value_arrives_exactly_as_given(host: Host, name: str) -> None:
    command = f"/srv/tiny/bin/run python -c '{PRINT_ENVIRONMENT}'"
    arrived = json.loads(as_user(host, "tiny", command).stdout)
    assert arrived[name] == ENVIRONMENT[name]


@pytest.mark.parametrize(
    ("setting", "value"), [("GREETING", 'hé "you"'), ("NUMBERS", [1, 2]), ("FLAG", False)]
)
def test_flask_setting_arrives(host: Host, setting: str, value: object) -> None:
    program = f"import json, wsgi; print(json.dumps(wsgi.app.config['{setting}']))"
    answer = as_user(host, "tiny", f'/srv/tiny/bin/run python -c "{program}"')
    assert json.loads(answer.stdout) == value


SURROUNDINGS = """
echo "$(id -un) $HOME $USER $LOGNAME $SHELL $PYTHONUNBUFFERED"
mkdir -p ~/.cache/x && ls -d ~/.cache
"""


@pytest.mark.parametrize(
    ("user", "home"), [("isso", "/srv/isso/home"), ("isso-deploy", "/srv/isso/cache/home")]
)
def test_each_user_of_the_app_has_a_home_that_it_may_write(
    host: Host, user: str, home: str
) -> None:
    said = as_user(host, user, f"/srv/isso/bin/run sh -euc '{SURROUNDINGS}'")
    assert said.stdout.splitlines() == [f"{user} {home} {user} {user} /bin/sh 1", f"{home}/.cache"]
    # Nobody else looks into it.
    assert as_user(host, "www-data", f"ls {home}").rc != 0


def test_a_slot_has_the_surroundings_of_its_user(host: Host) -> None:
    pid = host.check_output("supervisorctl pid isso:isso_0")
    environment = host.check_output("tr '\\0' '\\n' </proc/%s/environ", pid).splitlines()
    assert {"HOME=/srv/isso/home", "USER=isso", "LOGNAME=isso"} <= {*environment}
    release = host.check_output("readlink -e /srv/isso/serving/code")
    assert f"ISSO_SETTINGS={release}/isso.cfg" in environment


@pytest.mark.parametrize("user", ["www-data", "tagged", "tagged-deploy"])
@pytest.mark.parametrize("name", ["environment", "secrets", "migrate.environment"])
def test_stranger_cannot_read_the_environment(host: Host, user: str, name: str) -> None:
    assert as_user(host, user, f"cat /srv/tiny/serving/{name}").rc != 0


def test_app_cannot_read_what_migrations_use(host: Host) -> None:
    assert as_user(host, "tiny", "cat /srv/tiny/serving/migrate.environment").rc != 0


def test_migration_ran_as_the_deploy_user_with_its_own_environment(host: Host) -> None:
    assert host.file("/srv/tiny/cache/migrated").content_string == (
        "tiny-deploy\na secret's secret\n"
    )


def test_dependencies_of_pyproject_are_installed_and_the_server_wins(host: Host) -> None:
    program = "import flask, gunicorn; print(flask.__name__, gunicorn.__version__)"
    answer = as_user(host, "tiny", f"/srv/tiny/bin/run python -c '{program}'")
    assert answer.stdout.split() == ["flask", "27.0.1"]


def test_build_command_ran_in_the_release(host: Host) -> None:
    release = host.check_output("basename $(readlink /srv/tiny/serving)")
    assert host.file("/srv/tiny/current/built-by-command").content_string.strip() == release


def test_extra_debian_package_is_there(host: Host) -> None:
    assert host.package("tree").is_installed


@pytest.mark.parametrize("suffix", ["", ".gz", ".br"])
def test_web_server_reads_static_files_and_their_compressed_copies(host: Host, suffix: str) -> None:
    path = f"/srv/tiny/current/tiny/static/style.0123456789.css{suffix}"
    assert as_user(host, "www-data", f"test -s {path} && cat {path} > /dev/null").rc == 0


@pytest.mark.parametrize("path", ["wsgi.py", "tiny", "pyproject.toml"])
def test_web_server_reads_nothing_else(host: Host, path: str) -> None:
    path = f"/srv/tiny/current/{path}"
    command = f"{'ls' if host.file(path).is_directory else 'cat'} {path}"
    host.check_output(command)
    assert "Permission denied" in as_user(host, "www-data", command).stderr


def test_app_writes_what_is_shared_and_nothing_else(host: Host) -> None:
    assert as_user(host, "tiny", "echo x > /srv/tiny/current/data/x").rc == 0
    assert host.file("/srv/tiny/shared/data/x").content_string == "x\n"
    assert as_user(host, "tiny", "echo x > /srv/tiny/current/x").rc != 0


@pytest.mark.parametrize("folder", ["data/media", "avatars"])
def test_web_server_reads_what_visitors_send_whatever_the_umask(host: Host, folder: str) -> None:
    write = f"umask 077; cd /srv/tiny/current/{folder}; mkdir -p new; echo sent > new/a.txt"
    write += "; echo closed > b; chmod 600 b"
    assert as_user(host, "tiny", write).rc == 0
    read = as_user(host, "www-data", f"cat /srv/tiny/shared/{folder}/new/a.txt")
    assert read.stdout == "sent\n", read.stderr
    # What the app closes itself stays closed, and nothing is open to others.
    assert as_user(host, "www-data", f"cat /srv/tiny/shared/{folder}/b").rc != 0
    assert as_user(host, "nobody", f"cat /srv/tiny/shared/{folder}/new/a.txt").rc != 0
    assert as_user(host, "www-data", f"touch /srv/tiny/shared/{folder}/c").rc != 0


def test_web_server_passes_through_what_is_kept_beside_uploads(host: Host) -> None:
    assert as_user(host, "www-data", "ls /srv/tiny/shared/data").rc != 0


def test_tag_is_deployed_not_the_newest_commit(host: Host) -> None:
    assert host.file("/srv/tagged/current/revision").content_string == "first\n"


def test_git_history_stays_behind(host: Host) -> None:
    assert not host.file("/srv/tagged/current/.git").exists


def test_httpbin_answers_through_nginx(site: Callable[..., requests.Response]) -> None:
    answer = site("/post?a=b", host="httpbin.test", method="POST", data="text").json()
    assert (answer["args"], answer["data"]) == ({"a": "b"}, "text")


def test_isso_keeps_a_comment(site: Callable[..., requests.Response], host: Host) -> None:
    comment = {"text": "First!", "author": "June", "title": "A page"}
    answer = site("/new?uri=/page/", host="comments.test", method="POST", json=comment)
    assert answer.status_code == 201, answer.text
    kept = site("/?uri=/page/", host="comments.test").json()
    assert "First!" in kept["replies"][0]["text"]
    assert host.file("/srv/isso/shared/data/comments.db").user == "isso"


LOCKED = {"flask": "3.1.1", "click": "8.1.8", "werkzeug": "3.1.3", "house": "2.1", "lib": "0.7"}
PASSWORD = "only-the-index-knows-this"


def test_what_the_lock_says_is_installed_but_for_the_pin(host: Host) -> None:
    program = "import importlib.metadata as m, json\n"
    program += "print(json.dumps({x.name.lower(): x.version for x in m.distributions()}))"
    there = json.loads(host.check_output("tagged python -c %s", program))
    assert there.items() >= {**LOCKED, "jinja2": "3.1.6", "tagged": "1.4"}.items()


def test_the_app_s_own_code_and_command_are_found(host: Host) -> None:
    assert host.file("/srv/tagged/cache/said").content_string == "tagged==1.4 house==2.1 lib==0.7\n"
    found = as_user(host, "tagged", "tagged python -c 'import tagged; print(tagged.__file__)'")
    release = host.check_output("readlink -e /srv/tagged/current")
    assert found.stdout.strip() == f"{release}/src/tagged/__init__.py"


def test_it_runs_with_the_python_that_it_asked_for(host: Host) -> None:
    version = host.check_output("python3 -c 'import platform; print(platform.python_version())'")
    program = "import platform, ssl, sys; print(platform.python_version(), sys.base_prefix)"
    said = as_user(host, "tagged", f"tagged python -c '{program}'").stdout.split()
    assert said[0] == version
    assert said[1].startswith("/srv/tagged/python/cpython-")
    # Nobody who runs the app, or builds it, can change it.
    for user in ("tagged", "www-data"):
        assert as_user(host, user, f"test -w {said[1]}/bin/python3").rc != 0


def test_a_slot_runs_with_the_python_below_a_path(host: Host) -> None:
    pid = host.check_output("supervisorctl pid httpbin:httpbin_0")
    program = host.check_output("readlink /proc/%s/exe", pid)
    assert program.startswith("/opt/python/bin/python3.")


def test_the_password_of_an_index_is_nowhere_but_where_the_build_has_it(host: Host) -> None:
    assert host.file("/run/private-index.seen").content_string == ""
    places = "/srv/tagged /etc /run /tmp /var/lib /var/log /var/cache /var/tmp /home"
    found = host.run(f"grep -rslF --devices=skip {PASSWORD} {places}").stdout.split()
    assert found
    for path in found:
        assert path.endswith("/install.environment"), path
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "tagged-deploy", 0o640)
    assert host.run("journalctl --no-pager | grep -cF %s", PASSWORD).stdout.strip() == "0"
