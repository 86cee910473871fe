"""Passwords are compared as PostgreSQL stores them, so that a second run changes none."""

from __future__ import annotations

import base64
import hmac

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_contents as contents
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

# RFC 7677, section 3: the exchange of the user "user" with the password "pencil".
SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
AUTH_MESSAGE = (
    "n=user,r=rOprNGfwEbeRWgbNEkqO,"
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
)
SERVER_SIGNATURE = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
SERVER_KEY = "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
STORED_KEY = "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
VERIFIER = f"SCRAM-SHA-256$4096:{SALT}${STORED_KEY}:{SERVER_KEY}"


def test_the_verifier_of_this_test_is_the_one_of_rfc_7677() -> None:
    key = base64.b64decode(SERVER_KEY)
    signature = hmac.digest(key, AUTH_MESSAGE.encode(), "sha256")
    assert base64.b64encode(signature).decode() == SERVER_SIGNATURE


def test_a_password_is_known_by_its_verifier() -> None:
    assert contents.password_is(VERIFIER, "pencil")


@pytest.mark.parametrize("password", ["Pencil", "pencil ", "", "pensil"])
def test_another_password_is_not(password: str) -> None:
    assert not contents.password_is(VERIFIER, password)


@pytest.mark.parametrize("stored", [None, "", "md5c5e478d66bd7d2b4", "pencil"])
def test_what_is_no_verifier_matches_no_password(stored: str | None) -> None:
    assert not contents.password_is(stored, "pencil")


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        # RFC 4013, section 3.
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        # What that RFC forbids, PostgreSQL takes as it is.
        ("\u0007", "\u0007"),
        ("\u0627\u0031", "\u0627\u0031"),
        ("a\u00a0b", "a b"),
        ("\u0627\u00aa", "\u0627\u00aa"),
        ("🎉\u2168", "🎉\u2168"),
        ("", ""),
    ],
)
def test_a_password_is_prepared_as_postgres_does(password: str, prepared: str) -> None:
    assert contents.saslprep(password) == prepared


def test_a_locale_that_the_server_lacks_is_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents, "run", lambda *_: "C\nC.utf8\nde_AT.utf8\nPOSIX\nfr_FR\n")

    def wanted(*locales: str) -> list[dict[str, str]]:
        return [{"name": f"shop{n}", "locale": x} for n, x in enumerate(locales)]

    contents.refuse_locales(wanted("C.UTF-8", "de_AT.UTF-8", "fr_FR", "POSIX"))
    with pytest.raises(Failure, match=r"'de_DE\.UTF-8'.*'shop1'.*icu_locale: de-DE"):
        contents.refuse_locales(wanted("C", "de_DE.UTF-8"))


class Session:
    """Answers each question with the same rows, and notes what is changed."""

    def __init__(self, rows: list[tuple[int]]) -> None:
        self.found, self.changes = rows, []

    def rows(self, query: str) -> list[tuple[int]]:
        return self.found

    def change(self, what: str, statement: str, **names: str) -> None:
        self.changes.append(statement.format(**names))


@pytest.mark.parametrize(
    ("member_of", "closed", "changes"),
    [
        (["pg_monitor"], [(1,)], ["GRANT CONNECT ON DATABASE postgres TO pg_monitor"]),
        (["pg_monitor"], [], []),
        (["shop"], [(1,)], []),
        (None, [(1,)], []),
    ],
)
def test_who_watches_the_server_may_connect_to_the_database_of_no_app(
    member_of: list[str] | None, closed: list[tuple[int]], changes: list[str]
) -> None:
    session = Session(closed)
    contents.ensure_watchers(session, [{"member_of": ["a"]}, {"member_of": member_of}])
    assert session.changes == changes
