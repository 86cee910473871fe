"""What is said of a migration, or of an app, that failed, from what its log has."""

from __future__ import annotations

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    database_questions,
    migrations,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import CommandFailed

GCC = """error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory
ERROR: Failed building wheel for lxml"""
UV = "Failed to build `uwsgi==2.0.28`\n[Errno 2] No such file or directory: 'gcc'"
# As uv 0.13 and then pip 25.1 have said it on a server, shortened.
UV_AND_PIP = """error: Failed to build `misaka==2.1.1`
  cause: The build backend returned an error
         error: [Errno 2] No such file or directory: 'x86_64-linux-gnu-gcc'
--- build the virtual environment
error: failed-wheel-build-for-install
x Failed to build installable wheels for some pyproject.toml based projects
  Building wheel for misaka (pyproject.toml): finished with status 'error'
Failed to build misaka
"""
PG_CONFIG = """error: Failed to build `psycopg2==2.9.9`
         Error: pg_config executable not found.

         pg_config is required to build psycopg2 from source.
"""
HEADER = """src/lxml/etree.c:96:10: fatal error: Python.h: No such file or directory
ERROR: Could not build wheels for lxml, which is required to install its project"""
MESON = "../meson.build:1:0: ERROR: Unknown compiler(s): [['cc'], ['gcc']]"


@pytest.mark.parametrize(
    ("step", "log", "told"),
    [
        ("load", "InsufficientPrivilege: permission denied for schema public", "user_migrates"),
        ("probe", "InsufficientPrivilegeError: must be owner of table a", "user_migrates"),
        ("migrate", "OperationalError: attempt to write a readonly database", "app_shared"),
        ("migrate", "(sqlite3.OperationalError) unable to open database file", "app_shared"),
        ("build", GCC, "lxml has no wheel"),
        ("build", UV, "uwsgi==2.0.28 has no wheel"),
        ("build", UV_AND_PIP, "misaka has no wheel"),
        ("build", UV_AND_PIP, "app_requirements_override, or run the app with a Python"),
        ("build", PG_CONFIG, "psycopg2==2.9.9 has no wheel"),
        ("build", PG_CONFIG, "libpq-dev"),
        ("build", HEADER, "lxml has no wheel"),
        ("build", MESON, "One of the packages has no"),
        ("build", "error: can't find Rust compiler", "app_extra_packages"),
    ],
)
def test_what_a_log_means_is_said_with_a_way_out(step: str, log: str, told: str) -> None:
    assert told in migrations.hint(step, f"before\n{log}\nafter".encode())


@pytest.mark.parametrize(
    ("step", "log"),
    [
        ("load", "ModuleNotFoundError: No module named 'shop'"),
        ("build", "permission denied for schema public"),
        ("load", "attempt to write a readonly database"),
        ("build", "Successfully installed gcc-python"),
    ],
)
def test_what_it_does_not_mean_is_not_said(step: str, log: str) -> None:
    assert migrations.hint(step, log.encode()) == ""


def test_a_lock_that_did_not_come_is_known() -> None:
    assert migrations.waited(b"ERROR:  canceling statement due to lock timeout")
    assert migrations.waited(b"psycopg.errors.LockNotAvailable: x")
    assert migrations.waited(b"asyncpg.exceptions.LockNotAvailableError: x")
    assert migrations.waited(b"sqlite3.OperationalError: database is locked")
    assert not migrations.waited(b"canceling statement due to statement timeout")


def test_who_is_in_the_way_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(*words: str) -> str:
        asked.append(words)
        return "7 of report: SELECT 1\n" if "activity" in words[-1] else "public.ix\n"

    monkeypatch.setattr(migrations, "run", answer)
    assert "7 of report" in migrations.ask("shop", "others")
    assert "DROP INDEX CONCURRENTLY public.ix;" in migrations.ask("shop", "invalid")
    assert all("shop" in words and words[2] == "postgres" for words in asked)


def test_nobody_is_in_the_way_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "run", lambda *words: "")
    assert "Nobody has" in migrations.ask("shop", "others")
    assert migrations.ask("shop", "invalid") == ""


def test_a_database_that_does_not_answer_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: str) -> str:
        raise CommandFailed("no")

    monkeypatch.setattr(migrations, "run", fail)
    assert "SELECT * FROM pg_stat_activity" in migrations.ask("shop", "others")
    assert migrations.ask("shop", "invalid") == ""


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("postgresql+asyncpg://a:p%3Dw@b/c?ssl=verify-full", "//a:p%3Dw@b/c?sslmode=verify-full"),
        ("postgresql+psycopg://a@/c?host=/run/x", "//a@/c?host=/run/x"),
        ("postgres://a@b/c?x=1&ssl=require", "//a@b/c?x=1&sslmode=require"),
        ("postgresql://a@b/c?sslmode=require", "//a@b/c?sslmode=require"),
        ("sqlite:////srv/shop/shared/x.db", ""),
        ("mysql://a@b/c", ""),
        ("", ""),
    ],
)
def test_the_app_s_url_is_taken_as_drivers_take_it(url: str, plain: str) -> None:
    assert database_questions.libpq_url(url) == (plain and f"postgresql:{plain}")


def test_an_app_without_a_driver_is_told_how_to_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(database_questions, "DRIVERS", {"no_such_driver": None})
    monkeypatch.setattr("sys.argv", ["database-questions", "others"])
    monkeypatch.setenv("DATABASE_URL", "postgresql://a:hush@b/c")
    database_questions.main()
    said = capsys.readouterr()
    assert "on the database's server: sudo -u postgres psql" in said.out
    assert "has none of no_such_driver" in said.out
    assert "hush" not in said.out + said.err
