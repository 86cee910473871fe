"""Pack an app's code into one archive whose name says what is in it.

Standard input is a JSON object with ``folder`` (or null when the app is a Python package),
``exclude`` (patterns), ``files`` (more files, as in the role's argument specs), ``requirements``
(a path, or '' to look for one), ``packages`` (requirement lines instead of a file) and ``cache``,
the folder that keeps the archives. Standard output is a JSON object with ``revision`` (a hash of
the content), ``requirements`` (the file that pip reads, a path in the release), ``dependencies``
(a hash of all that pip is asked for) and ``archive`` (a path).

The same content gives the same archive, wherever and whenever it is packed.
"""

import fnmatch
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import sys
import tarfile
import tomllib

GENERATED = ".requirements.txt"
INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]+(\S+)")


def collect(folder, exclude):
    """Return the files below a folder as {path in the release: (mode, bytes or link target)}."""
    found = {}
    for top, folders, files in os.walk(folder):
        here = pathlib.Path(top).relative_to(folder)

        def stays(entry, here=here):
            paths = (entry, (here / entry).as_posix())
            return not any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in exclude)

        links = [x for x in folders if pathlib.Path(top, x).is_symlink()]
        folders[:] = sorted(x for x in folders if stays(x) and x not in links)
        for entry in filter(stays, files + links):
            path = pathlib.Path(top, entry)
            if path.is_symlink():
                found[(here / entry).as_posix()] = (0o777, str(path.readlink()))
            elif path.is_file():
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                found[(here / entry).as_posix()] = (mode, path.read_bytes())
    return found


def requirements_of(found, wanted):
    """Return the path that pip reads and the text that decides what it installs."""
    candidates = [wanted] if wanted else ["requirements.txt", "pyproject.toml"]
    path = next((x for x in candidates if x in found), None)
    if path is None:
        sys.exit(
            f"No {' or '.join(candidates)} in the app's folder. Add one, or set app_requirements to"
            " the file that names its Python dependencies."
        )
    if path.endswith(".toml"):
        project = tomllib.loads(found[path][1].decode()).get("project", {})
        text = "".join(f"{line}\n" for line in project.get("dependencies", []))
        found[GENERATED] = (0o644, text.encode())
        return GENERATED, text
    return path, included(found, path, set())


def included(found, path, seen):
    """Return a requirements file's text with that of the files it includes."""
    if path in seen or path not in found:
        return ""
    seen.add(path)
    text = found[path][1].decode()
    for line in text.splitlines():
        if match := INCLUDE.match(line):
            beside = os.path.normpath(pathlib.PurePosixPath(path).parent / match[1])
            text += included(found, beside, seen)
    return text


def archive_of(found):
    """Return a compressed tar archive of the files, the same for the same content."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, (mode, content) in sorted(found.items()):
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main():
    wanted = json.load(sys.stdin)
    found = {}
    if wanted["folder"] is not None:
        folder = pathlib.Path(wanted["folder"]).expanduser()
        if not folder.is_dir():
            sys.exit(f"{folder} is not a folder on the control machine. Correct app_path.")
        found = collect(folder, wanted["exclude"])
        if not found:
            sys.exit(f"{folder} holds no file to deploy. Correct app_path or app_exclude.")
    for extra in wanted["files"]:
        found[os.path.normpath(extra["path"])] = (0o644, extra["content"].encode())
    if wanted["packages"]:
        text = "".join(f"{line}\n" for line in wanted["packages"])
        found[GENERATED], requirements = (0o644, text.encode()), GENERATED
    else:
        requirements, text = requirements_of(found, wanted["requirements"])
    digest = hashlib.sha256()
    for path, (mode, content) in sorted(found.items()):
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"{path}\0{mode:o}\0{len(data)}\0".encode() + data)
    revision = digest.hexdigest()
    cache = pathlib.Path(wanted["cache"]).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{revision}.tar.gz"
    if not archive.exists():
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(archive_of(found))
        partial.rename(archive)
    json.dump(
        {
            "revision": revision,
            "requirements": requirements,
            "dependencies": hashlib.sha256(text.encode()).hexdigest(),
            "archive": str(archive),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
