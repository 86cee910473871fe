"""What visitors have sent does nothing in the name of the site."""

import pytest

FOLDER = "/srv/kept/uploads"
SHOWN = {
    "a.png": "image/png",
    "a.JPG": "image/jpeg",
    "a.webp": "image/webp",
    "a.mp4": "video/mp4",
    "a.mp3": "audio/mpeg",
    "a.txt": "text/plain; charset=utf-8",
    "deep/er/ü b.png": "image/png",
}
MARKUP = """
    html HTML htm xhtml xht mhtml xml svgz png.html txt.html html. js mjs css php py swf json wasm
    zip exe
"""
SAVED = {
    "a.pdf": "application/pdf",
    "a.svg": "image/svg+xml",
    **dict.fromkeys([f"a.{x}" for x in MARKUP.split()], "application/octet-stream"),
    **dict.fromkeys(["a", "index.html", "folder/index.html"], "application/octet-stream"),
}
NEVER = [".env", ".hidden.png", "deep/.git/config", ".well-known/x", "..png"]


@pytest.fixture(scope="module", autouse=True)
def sent(host):
    """Leave what visitors may have sent, and what an app that was taken over may have put there."""
    write = f"import os, pathlib\nnames, folder = {([*SHOWN, *SAVED, *NEVER], FOLDER)!r}\n"
    write += """
folder = pathlib.Path(folder)
for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("<script>alert(1)</script>")
# A packed copy that says another thing.
(folder / "a.txt.gz").write_text("other")
(folder / "closed.png").write_text("closed")
(folder / "closed.png").chmod(0o600)
pathlib.Path("/srv/kept/secret.txt").write_text("secret")
for name, aim in (("link.txt", "../secret.txt"), ("away", "/srv/kept")):
    (folder / name).is_symlink() or (folder / name).symlink_to(aim)
"""
    host.check_output("python3 -c %s", write)


@pytest.fixture(params=["app.test", "leaflet.test"])
def place(request):
    """A site with an app, and one without."""
    return request.param


@pytest.mark.parametrize("name", SHOWN)
def test_pictures_sound_videos_and_text_are_shown(ask, place, name):
    answer = ask(place, f"/uploads/{name}".replace(" ", "%20"))
    assert (answer.status, answer.header("Content-Type")) == (200, SHOWN[name])
    assert answer.header("Content-Disposition") == ""


@pytest.mark.parametrize("name", SAVED)
def test_all_else_is_to_be_saved(ask, place, name):
    answer = ask(place, f"/uploads/{name}")
    assert (answer.status, answer.header("Content-Type")) == (200, SAVED[name])
    assert answer.header("Content-Disposition") == "attachment"


@pytest.mark.parametrize("name", ["a.png", "a.html", "a.svg"])
def test_nothing_in_it_runs_and_it_is_asked_for_again(ask, place, name):
    answer = ask(place, f"/uploads/{name}")
    policy = answer.header("Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert policy.endswith("; sandbox")
    assert "script-src" not in policy
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Cache-Control") == "no-cache"
    again = ask(place, f"/uploads/{name}", "--header", f"If-None-Match: {answer.header('ETag')}")
    assert again.status == 304


@pytest.mark.parametrize("name", [*NEVER, "link.txt", "closed.png", "%2eenv", "deep/../.env"])
def test_what_nobody_is_to_see_is_not_found(ask, place, name):
    answer = ask(place, f"/uploads/{name}")
    assert (answer.status, answer.body) == (404, "Not found\n")


def test_a_part_of_a_video_is_sent(ask, place):
    answer = ask(place, "/uploads/a.mp4", "--header", "Range: bytes=1-6")
    assert (answer.status, answer.body) == (206, "script")


def test_no_packed_copy_takes_a_file_s_place(ask, place):
    answer = ask(place, "/uploads/a.txt", "--header", "Accept-Encoding: gzip")
    assert answer.body.startswith("<script>")


@pytest.mark.parametrize("path", ["/uploads/", "/uploads/folder/", "/uploads/missing.png"])
def test_no_folder_is_listed_and_the_app_may_answer(ask, path):
    assert ask("app.test", path).seen["path"] == path
    assert ask("leaflet.test", path).status == 404


@pytest.mark.parametrize("path", ["/uploads/", "/uploads/a.png"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_what_is_sent_goes_to_the_app(ask, path, method):
    assert ask("app.test", path, "--request", method).seen["method"] == method
    assert ask("leaflet.test", path, "--request", method).status in (404, 405)


@pytest.mark.parametrize(
    "path", ["/uploads../secret.txt", "/uploads/../secret.txt", "/uploads/away/secret.txt"]
)
def test_nothing_beside_the_folder_is_served(ask, place, path):
    assert ask(place, path).body.strip() != "secret"
