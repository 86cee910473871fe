"""Show what others wrote, such as an app in its log, as the plain text that it is.

Used by modules, by plugins of the control machine, and by programs that run without Ansible.
"""

from __future__ import annotations

import unicodedata

LENGTH = 200  # characters of what others wrote in a line of Carafe's own


def escaped(text: str | bytes) -> str:
    """Return a text in which nothing but its lines and tabs moves or hides anything.

    What a terminal takes for a command is written out, and so is what turns the direction of
    writing, what has no width, and what is no UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    text = text.replace("\r\n", "\n")
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(letter if harmless(letter) else written_out(letter) for letter in text)


def harmless(letter: str) -> bool:
    # A blank of another width is no more than a blank.
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def written_out(letter: str) -> str:
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape has it
        number -= 0xDC00
    if number < 0x100:
        return {"\r": "\\r"}.get(letter, f"\\x{number:02x}")
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def one_line(text: str, length: int = LENGTH) -> str:
    """Return a text as one field of a line: escaped, with single blanks, and not too long."""
    line = " ".join(escaped(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
