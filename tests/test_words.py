"""What others wrote is shown as it is, and does nothing to where it is shown."""

from __future__ import annotations

import unicodedata

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import words

# What ends a line or is taken for more than a character somewhere: terminals, XML, Python.
ODD = [chr(x) for x in (*range(9), *range(11, 32), *range(0x7F, 0xA0))]
ODD += [
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\u200b",
    "\u200f",
    "\ufeff",
    "\ud800",
    "\U000e0041",
]


@pytest.mark.parametrize("letter", ODD, ids=lambda x: f"{ord(x):x}")
def test_what_is_no_letter_is_written_out(letter: str) -> None:
    shown = words.escaped(f"a{letter}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")
    assert shown.splitlines() == [shown]


@pytest.mark.parametrize(
    "text", ["", "plain\n\tand indented\n", "Ünïcode, 日本語, 🍷, a\xa0b", "C:\\new \\x1b"]
)
def test_what_is_text_stays_as_it_is(text: str) -> None:
    assert words.escaped(text) == text


def test_what_is_no_utf_8_is_shown_by_its_bytes() -> None:
    assert words.escaped(b"caf\xe9 \x1b]0;owned\x07\r\nnext\rsame") == (
        "caf\\xe9 \\x1b]0;owned\\x07\nnext\\rsame"
    )


def test_a_field_is_one_line_with_no_second_field_in_it() -> None:
    forged = "eve\n2026-01-01 00:00:00 UTC  ann  deployment of x  ok\u2028\x85 \t"
    line = words.one_line(forged)
    assert len(line.splitlines()) == 1
    assert "  " not in line
    assert len(words.one_line("x" * 5000)) == words.LENGTH
    assert not any(unicodedata.category(x) in ("Cc", "Zl", "Zp", "Cf") for x in line)
