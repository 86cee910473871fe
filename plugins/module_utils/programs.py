"""Put programs on the server that run without Ansible, and share their code with a module.

A program is a folder: ``__main__.py`` and a package ``carafe`` with some of these module_utils,
which therefore import each other relatively.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from .files import remove, write

FOLDER = Path("/usr/local/lib/carafe")
MAIN = '''# Managed by Ansible.
"""The program {name} of Carafe. Its code is that of the modules of the collection carafe.stack."""

import sys

from carafe.{main} import main

sys.exit(main())
'''


def names(*modules: ModuleType) -> list[str]:
    """Return what a program is made of, as install() takes it."""
    return [x.__name__.rpartition(".")[2] for x in modules]


def source(name: str) -> str:
    """Return the text of one of the module_utils, wherever this one was imported from.

    The text of the module that asks must import it: nothing else is sent along with that.
    """
    spec = importlib.import_module(f"{__package__}.{name}").__spec__
    if hasattr(spec.loader, "get_source"):  # a folder, or the archive that a module travels in
        text = spec.loader.get_source(spec.name)
    else:  # Mitogen's loader has no such method; it fetches the file that its origin names
        from ansible_mitogen.target import get_small_file

        text = get_small_file(spec.loader._context, spec.origin.removeprefix("master:"))
    return text if isinstance(text, str) else text.decode()


def install(name: str, modules: list[str], check: bool = False) -> list[str]:
    """Make a program of these module_utils, and return the paths that changed.

    The first of them has the function ``main``. With ``check``, only say what would change.
    """
    folder = FOLDER / name
    wanted = {folder / "carafe" / f"{module}.py": source(module) for module in modules}
    wanted[folder / "carafe" / "__init__.py"] = ""
    # The last one, so that a program that is there is whole.
    wanted[folder / "__main__.py"] = MAIN.format(name=name, main=modules[0])
    # Where root has run it, Python has compiled it, __main__ too.
    caches = [folder / "__pycache__", folder / "carafe/__pycache__"]
    there = {x for x in folder.rglob("*") if not x.is_dir() and x.parent not in caches}
    changed = [
        *(path for path, text in wanted.items() if path not in there or path.read_text() != text),
        *sorted(there - wanted.keys()),
    ]
    if changed and not check:
        for parent in (FOLDER, folder, folder / "carafe"):
            parent.mkdir(exist_ok=True)
            parent.chmod(0o755)
        # Python tells what it has compiled by second and size of the source, which may be the same.
        for cache in caches:
            remove(cache)
        for path in changed:
            if path in wanted:
                write(path, wanted[path])
            else:
                path.unlink()
    return [str(path) for path in changed]
