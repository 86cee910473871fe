"""carafe.stack.files: what is refused, what lands, and what a dry run shows."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.action import files as action
from ansible_collections.carafe.stack.plugins.module_utils.file_set import (
    FileSet,
    Refused,
    items_of,
)

OWN = {"owner": str(os.getuid()), "group": str(os.getgid())}
FOLDER = {**OWN, "mode": "0755", "only_new": False}
FILE = {**OWN, "mode": "0644", "content": "", "encoding": "text", "validate": None}
FILE |= {"sensitive": False}


def wanted(**parts: Any) -> dict[str, Any]:
    """Return arguments as the module has them, from short ones."""
    return {
        "folders": [FOLDER | x for x in parts.get("folders", [])],
        "files": [FILE | x | {"dest": str(x["dest"])} for x in parts.get("files", [])],
        "absent": [str(x) for x in parts.get("absent", [])],
        "checks": parts.get("checks", []),
    }


def land(check_mode: bool = False, **parts: Any) -> FileSet:
    arguments = wanted(**parts)
    files = FileSet(items_of(arguments), check_mode, arguments["checks"])
    files.write()
    return files


def changed(files: FileSet) -> list[Path]:
    return [item.path for item in files.due]


def test_all_kinds_land_and_a_second_run_finds_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").touch()
    parts = {
        "folders": [{"path": tmp_path / "a", "mode": "0750"}, {"path": tmp_path / "a/b"}],
        "files": [{"dest": tmp_path / "a/b/c", "content": "naïve\n", "mode": "4755"}],
        "absent": [tmp_path / "old", tmp_path / "never"],
    }
    assert changed(land(**parts)) == [tmp_path / x for x in ("a", "a/b", "a/b/c", "old")]
    assert (tmp_path / "a/b/c").read_text() == "naïve\n"
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750
    assert not (tmp_path / "old").exists()
    assert changed(land(**parts)) == []


def test_a_changed_mode_is_mended_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("same")
    path.chmod(0o600)
    files = land(files=[{"dest": path, "content": "same"}])
    (shown,) = files.diff
    assert (shown["before"], shown["after"]) == ({"mode": "0600"}, {"mode": "0644"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_that_is_there_can_be_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    assert changed(land(folders=[{"path": tmp_path / "a", "only_new": True}])) == []
    assert changed(land(folders=[{"path": tmp_path / "a"}])) == [tmp_path / "a"]


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("same")
    (tmp_path / "a").symlink_to("theirs")
    (tmp_path / "gone").symlink_to("theirs")
    land(files=[{"dest": tmp_path / "a", "content": "same"}], absent=[tmp_path / "gone"])
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "theirs").read_text() == "same"


def test_a_refused_file_keeps_all_others_from_landing(tmp_path: Path) -> None:
    parts = {
        "folders": [{"path": tmp_path / "folder"}],
        "files": [
            {"dest": tmp_path / "good", "content": "fine", "validate": "grep -q fine %s"},
            {
                "dest": tmp_path / "bad",
                "content": "wrong",
                "validate": "sh -c 'echo {}: line 1 is bad; exit 1' %s".format("$0"),
            },
        ],
    }
    with pytest.raises(Refused) as refused:
        land(**parts)
    told = f"{tmp_path}/bad is refused, and nothing was written: {tmp_path}/bad: line 1 is bad"
    assert str(refused.value) == told
    assert not list(tmp_path.iterdir())


def test_a_checker_sees_the_folder_as_it_will_be(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    (folder / "sub").mkdir(parents=True)
    for name in ("kept", "gone", "sub/changed"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to("kept")
    os.mkfifo(folder / "pipe")
    see = f'cd "$0" && ls -R1 . >{tmp_path}/seen && cat sub/changed link >>{tmp_path}/seen'
    parts = {
        "files": [{"dest": folder / x, "content": f"new {x}"} for x in ("sub/changed", "more")],
        "absent": [folder / "gone"],
        "checks": [
            {"folder": str(folder), "command": f"sh -c '{see}' %s"},
            {"folder": str(tmp_path / "else"), "command": "false %s"},
        ],
    }
    land(check_mode=True, **parts)
    words = (tmp_path / "seen").read_text().split()
    assert {"kept", "more", "new", "sub/changedkept"} <= set(words)
    assert not {"gone", "pipe"} & set(words)
    assert (folder / "gone").exists()
    # Where nothing changes, nothing is asked.
    land(**parts)
    (tmp_path / "seen").unlink()
    assert changed(land(**parts)) == []
    assert not (tmp_path / "seen").exists()


def test_a_folder_that_is_refused_is_named_and_nothing_lands(tmp_path: Path) -> None:
    command = "sh -c 'echo nginx: bad in $0/a; exit 1' %s"
    with pytest.raises(Refused, match=f"{tmp_path} is refused.* bad in {tmp_path}/a$"):
        land(
            files=[{"dest": tmp_path / "a", "content": "x"}],
            checks=[{"folder": str(tmp_path), "command": command}],
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"owner": "nobody-of-that-name"}, "does not have the user nobody-of-that-name of"),
        ({"group": "nobody-of-that-name"}, "does not have the group nobody-of-that-name of"),
        ({"dest": "missing/a"}, "missing of .*missing/a is not there"),
        ({"validate": "no-such-checker %s"}, "the server has no no-such-checker"),
    ],
)
def test_what_the_server_lacks_is_told_and_a_dry_run_goes_on(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    entry = {"content": "x", **entry, "dest": tmp_path / entry.get("dest", "a")}
    with pytest.raises(Refused, match=message):
        land(files=[entry])
    files = land(check_mode=True, files=[entry])
    assert changed(files) == [entry["dest"]]
    assert files.diff[0]["after"] == "x"
    assert len(files.notes) == ("validate" in entry)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(tmp_path / "b"))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match=r"No space left .* before that: nothing"):
        land(files=[{"dest": tmp_path / x, "content": "new"} for x in "ab"])
    assert [x.name for x in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old words")
    files = land(files=[{"dest": path, "content": "new words", "sensitive": True}])
    assert "words" not in json.dumps(files.diff)
    assert str(path) in json.dumps(files.diff)


def test_what_is_no_text_is_shown_by_its_size(tmp_path: Path) -> None:
    content = {"content": "/wA=", "encoding": "base64"}
    files = land(files=[{"dest": tmp_path / "a", **content}])
    assert files.diff[0]["after"] == "(2 bytes that are no text)\n"
    assert (tmp_path / "a").read_bytes() == b"\xff\x00"


def test_what_the_module_documents_is_no_mistake() -> None:
    file = {"dest": "/a/b", "content": "/wA=", "encoding": "base64"}
    assert not list(action.problems({"files": [file]}))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"file": []}, "file is no list of this module"),
        ({"files": {}}, "files must be a list of dictionaries"),
        ({"files": [{"dest": "a", "content": ""}]}, "'a', but needs an absolute path"),
        ({"files": [{"dest": "/a/../b", "content": ""}]}, "needs an absolute path"),
        ({"files": [{"content": ""}]}, "None, but needs an absolute path"),
        ({"files": [{"dest": "/a"}]}, "has no text; give one of src, content, copy"),
        ({"files": [{"dest": "/a", "src": "x", "copy": "y"}]}, "has src and copy; give one"),
        ({"files": [{"dest": "/a", "content": {"a": 1}}]}, "a content that is no text"),
        ({"files": [{"dest": "/a", "content": "", "modes": "x"}]}, "has modes, which is not known"),
        ({"files": [{"dest": "/a", "content": "", "mode": 420}]}, "octal digits in quotes"),
        ({"files": [{"dest": "/a", "content": "", "mode": "u+x"}]}, "octal digits in quotes"),
        ({"files": [{"dest": "/a", "content": "", "validate": "x"}]}, "a validate without %s"),
        ({"files": [{"dest": "/a", "src": "x", "vars": []}]}, "vars that are no dictionary"),
        ({"files": [{"dest": "/a", "content": ""}] * 2}, "files has /a twice"),
        ({"folders": [{"path": "b"}]}, "'b', but needs an absolute path"),
        ({"trees": [{"dest": "/a"}]}, "trees: /a has no src"),
        ({"checks": [{"folder": "/a"}]}, "checks: /a has no command"),
        ({"absent": "x"}, "absent must be a list"),
        ({"absent": ["x/y"]}, "absent has 'x/y', but needs an absolute path"),
        ({"absent": ["/etc"]}, "absent has /etc, which is too much"),
        ({"absent": ["/a/b"], "files": [{"dest": "/a/b/c", "content": ""}]}, "is to be absent"),
    ],
)
def test_a_mistake_is_one_line_before_anything(arguments: dict[str, Any], problem: str) -> None:
    (told,) = action.problems(arguments)
    assert problem in told
    assert "\n" not in told


PLAY = """
- hosts: localhost
  gather_facts: false
  connection: local
  roles: [example]
"""
TASKS = """
- name: Write
  carafe.stack.files:
    folders: ["{{ own | combine({'path': place ~ '/sub'}) }}"]
    files: "{{ [own] | product(files) | map('combine') }}"
  vars:
    two: second
    own: {owner: "{{ us[0] }}", group: "{{ us[1] }}"}
    files:
      - {src: etc/a.j2, dest: "{{ place }}/a", vars: {one: "1 {{ two }}"}}
      - {content: "{{ secret }}", dest: "{{ place }}/b", sensitive: true}
      - {copy: c, dest: "{{ place }}/sub/c"}
      - {copy: collection:fit-sandbox, dest: "{{ place }}/fit"}
  register: done
- name: Show
  ansible.builtin.debug: {var: done}
"""


@pytest.fixture
def play(tmp_path: Path, ansible_environment: dict[str, str]) -> Any:
    """Run a role that writes files, in a folder of its own."""
    role = tmp_path / "roles/example"
    for folder in ("tasks", "templates/etc", "files"):
        (role / folder).mkdir(parents=True)
    (tmp_path / "play.yml").write_text(PLAY)
    (role / "tasks/main.yml").write_text(TASKS)
    (role / "templates/etc/a.j2").write_text(
        "{# x #}\n{% if one %}\n{{ one }} {{ two }}\n{% endif %}\n"
    )
    (role / "files/c").write_bytes(b"\xff {{ one }}\n")
    (tmp_path / "place").mkdir()

    def run(*options: str, **environment: str) -> str:
        variables = {"place": str(tmp_path / "place"), "secret": "s3cret-word"}
        variables |= {"us": list(OWN.values())}
        done = subprocess.run(
            ["ansible-playbook", "-e", json.dumps(variables), *options, "play.yml"],
            cwd=tmp_path,
            env={**ansible_environment, **environment},
            capture_output=True,
            text=True,
        )
        return f"{done.returncode} {done.stdout} {done.stderr}"

    return run


@pytest.mark.parametrize("strategy", ["linear", "mitogen_linear"])
def test_a_role_s_files_are_rendered_and_written_in_one_call(
    play: Any, tmp_path: Path, strategy: str
) -> None:
    place = tmp_path / "place"
    done = play("--check", "--diff", "-vvv", ANSIBLE_STRATEGY=strategy)
    assert done.startswith("0 "), done
    assert "+1 second second" in done
    assert not list(place.iterdir())
    done = play("--diff", "-vvv", ANSIBLE_STRATEGY=strategy)
    assert done.startswith("0 "), done
    assert (place / "a").read_text() == "1 second second\n"
    assert (place / "b").read_text() == "s3cret-word"
    assert (place / "sub/c").read_bytes() == b"\xff {{ one }}\n"
    assert (place / "fit").read_text().startswith("#!/bin/sh\n")
    # Neither secrets nor programs, whatever is asked to be shown.
    assert "#!/bin/sh" not in done
    assert "s3cret-word" not in done
    assert "changed=0" in play(ANSIBLE_STRATEGY=strategy)


def test_what_cannot_be_rendered_is_one_line(play: Any, tmp_path: Path) -> None:
    (tmp_path / "roles/example/templates/etc/a.j2").write_text("{{ unknown_word }}")
    done = play()
    assert done.startswith("2 ")
    assert "The template etc/a.j2 of" in done
    assert "'unknown_word' is undefined" in done
    assert not list((tmp_path / "place").iterdir())
