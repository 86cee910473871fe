"""Wheels that a test makes, for an index of its own."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def make(
    folder: Path,
    name: str,
    version: str,
    requires: Iterable[str] = (),
    extras: Mapping[str, str] | None = None,
) -> str:
    """Make a wheel of one module; return its hash, as a requirements file has it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_").replace(".", "_").lower()
    path, info = folder / f"{stem}-{version}-py3-none-any.whl", f"{stem}-{version}.dist-info"
    more = [f"Requires-Dist: {x}" for x in requires]
    for extra, wanted in (extras or {}).items():
        more += [f"Provides-Extra: {extra}", f"Requires-Dist: {wanted}; extra == '{extra}'"]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
