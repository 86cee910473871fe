"""Static files, and compression."""

from urllib.parse import quote

import pytest

# Of nginx, and of nobody else.
SECRET = "/srv/private/secret.txt"
HIDDEN = """
    .env .env.production .ENV .git/config .svn/entries .hg/store/data .htaccess .DS_Store
    .well-known/.env .app.css.swp .deep/under/page.txt folder/.deep/page.txt app.css~
    folder~/page.txt app.css.bak app.css.BAK app.css.bak2 app.css.bak-20240131 app.css.bak.gz
    app.bak.tar.gz app.css.backup app.css.old app.css.old.1 app.css.orig app.css.rej app.css.save
    app.css.swo app.css.tmp app.css~.gz old.bak/page.txt dump.sql dump.SQL dump.sql.gz dump.sql.xz
    all.dump prod.env #app.css#
"""
SHOWN = """
    .well-known/page.txt page.txt bak old.css sql.html my.sqlformat.css env.js a.oldest.css
    tilde~.css tmp/page.txt #page.txt report.2024.txt archive.tar.gz dumps/page.txt
"""
# Name, and where it leads.
LINKS = {
    "link.txt": SECRET,
    "relative.txt": "../private/secret.txt",
    "chain.txt": "link.txt",
    "away": "/srv/private",
    "log.txt": "/var/log/nginx/access.log",
    "cache": "/var/lib/nginx",
    "index/index.html": SECRET,
    "half.css.gz": SECRET,
    "half.css.br": SECRET,
    "inside.txt": "release.txt",
}
ASKED = [
    "link.txt",
    "relative.txt",
    "chain.txt",
    "away/secret.txt",
    "log.txt",
    "cache/secret.txt",
    "index/",
    "inside.txt",
]
PLACES = {
    "below an app": ("app.test", 80, "/static/", "/srv/one"),
    "with no app": ("leaflet.test", 80, "/media/", "/srv/media"),
    "at the root": ("public.test", 8081, "/", "/srv/public"),
    "beside a cache": ("cached.test", 80, "/static/", "/srv/one"),
}


@pytest.fixture(scope="module")
def planted(host):
    """Leave what an app may leave in a static folder. What is secret, nginx alone may read."""
    folders = sorted({folder for *_, folder in PLACES.values()})
    write = "import os, pathlib, shutil\n"
    write += f"links, secret, folders = {(LINKS, SECRET, folders)!r}\n"
    write += f"hidden, shown = {(HIDDEN.split(), SHOWN.split())!r}\n"
    write += """
private = pathlib.Path(secret)
private.parent.mkdir(exist_ok=True)
private.write_text("secret\\n")
pathlib.Path("/var/lib/nginx/secret.txt").write_text("secret\\n")
for path in (private, "/var/lib/nginx/secret.txt"):
    shutil.chown(path, "www-data", "www-data")
    os.chmod(path, 0o600)
for folder in map(pathlib.Path, folders):
    texts = dict.fromkeys(hidden, "secret\\n") | dict.fromkeys(shown, "shown")
    (folder / "half.css").write_text("half")
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name, aim in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(aim)
    pipe = folder / "pipe.txt"
    pipe.exists() or os.mkfifo(pipe, 0o644)
planted = pathlib.Path("/srv/one/planted")
planted.is_symlink() or planted.symlink_to("/srv/private")
"""
    host.check_output("python3 -c %s", write)


@pytest.mark.parametrize("place", PLACES)
def test_names_that_were_not_meant_for_visitors_are_not_given_out(ask, planted, place):
    name, port, url, _ = PLACES[place]
    encoded = [quote(x) for x in HIDDEN.split()] + [
        "%2eenv",
        "%2Esvn/entries",
        "app.css%7E",
        "folder/..//.env",
        "x/../.env",
    ]
    answers = {x: ask(name, f"{url}{x}", at=f"127.0.0.1:{port}") for x in encoded}
    wrong = {
        x: (y.status, y.body)
        for x, y in answers.items()
        if (y.status, y.body) != (404, "Not found\n")
    }
    assert not wrong
    assert ask(name, f"{url}.env", "--request", "POST", at=f"127.0.0.1:{port}").status == 404
    assert ask(name, f"{url}.env").header("Cache-Control") == ""


@pytest.mark.parametrize("place", PLACES)
def test_names_that_only_resemble_them_are(ask, planted, place):
    name, port, url, _ = PLACES[place]
    bodies = {x: ask(name, url + quote(x), at=f"127.0.0.1:{port}").body for x in SHOWN.split()}
    assert set(bodies.values()) == {"shown"}, bodies


@pytest.mark.parametrize("place", PLACES)
def test_no_link_in_a_static_folder_is_followed(ask, planted, place):
    name, port, url, _ = PLACES[place]
    for path in [*ASKED, "pipe.txt"]:
        answer = ask(name, url + path, at=f"127.0.0.1:{port}")
        if place == "with no app":
            assert answer.status in (403, 404), path
        else:
            assert answer.seen["path"] == url + path
    for encoding in ("gzip", "br"):
        accept = ["--header", f"Accept-Encoding: {encoding}"]
        assert "secret" not in ask(name, f"{url}half.css", *accept, at=f"127.0.0.1:{port}").body


def test_nor_is_a_static_folder_that_is_a_link_itself_in_what_others_write(ask, planted):
    assert ask("app.test", "/planted/secret.txt").seen["path"] == "/planted/secret.txt"


@pytest.mark.parametrize(
    "path",
    [
        "/static/link.txt",
        "/static/.env",
        "/static/away/secret.txt",
        "/planted/secret.txt",
        "/static/../private/secret.txt",
        "/media../private/secret.txt",
        "/static/%2e%2e/private/secret.txt",
        "/static/half.css.br",
        "//srv/private/secret.txt",
    ],
)
def test_an_app_cannot_send_a_visitor_where_the_visitor_may_not_go(ask, planted, path):
    assert "secret\n" not in ask("app.test", f"/?header=X-Accel-Redirect:{quote(path)}").body


@pytest.mark.parametrize(
    ("path", "kept_for"),
    [
        ("/static/app.0123abcd.css", "public, max-age=31536000, immutable"),
        ("/static/release.txt", "public, max-age=3600"),
        ("/static/report-20240131.txt", "public, max-age=3600"),
        ("/media/picture.txt", "public, max-age=3600"),
        ("/media/a+b/index-BfQ2x9aZ.js", "public, max-age=31536000, immutable"),
        ("/static/missing.0123abcd.css", ""),
        ("/", ""),
    ],
)
def test_a_file_is_kept_for_ever_only_when_its_name_is_a_hash(ask, path, kept_for):
    assert ask("app.test", path).header("Cache-Control") == kept_for


def test_a_missing_hashed_file_is_not_kept_where_no_app_is_asked(ask):
    answer = ask("leaflet.test", "/media/missing.0123abcd.css")
    assert (answer.status, answer.header("Cache-Control")) == (404, "")


@pytest.mark.parametrize(
    "path", ["/static/../secret.txt", "/static../secret.txt", "/media../secret.txt"]
)
def test_nothing_beside_a_static_folder_is_served(ask, path):
    assert "secret\n" not in ask("app.test", path).body


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/static/module.mjs", "text/javascript; charset=utf-8"),
        ("/static/plain.css", "text/css; charset=utf-8"),
        ("/static/release.txt", "text/plain; charset=utf-8"),
    ],
)
def test_a_file_has_the_type_that_browsers_ask_for(ask, path, kind):
    answer = ask("app.test", path)
    assert answer.header("Content-Type") == kind
    assert answer.header("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize(
    ("accepted", "body"),
    [("", "plain"), ("gzip", "gzip"), ("identity", "plain")],
)
def test_a_compressed_copy_is_sent_to_who_accepts_it(ask, accepted, body):
    answer = ask("app.test", "/static/packed.css", "--header", f"Accept-Encoding: {accepted}")
    assert answer.body.strip() == body
    assert "Accept-Encoding" in answer.header("Vary")


def test_a_brotli_copy_is_sent_to_who_accepts_it(ask):
    # What lies in memory behind the path decides whether the module finds a copy: with a name of
    # this length nginx puts it elsewhere.
    accept = ["--header", "Accept-Encoding: gzip, deflate, br", "--header"]
    answers = [
        ask("app.test", "/static/packed.css", *accept, f"X-{'x' * length}: 1")
        for length in range(40, 48)
    ]
    bodies = {x.body.strip() for x in answers}
    assert "brotli" in bodies
    assert bodies <= {"brotli", "gzip"}
    assert all("Accept-Encoding" in x.header("Vary") for x in answers)


@pytest.mark.parametrize("path", ["/static/plain.css", "/?size=2000"])
@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_what_has_no_compressed_copy_is_compressed_on_the_way(ask, path, encoding):
    # The body is no text.
    only_head = ["--output", "/dev/null", "--dump-header", "-"]
    answer = ask("app.test", path, "--header", f"Accept-Encoding: {encoding}", *only_head)
    assert answer.header("Content-Encoding") == encoding
    assert "Accept-Encoding" in answer.header("Vary")


def test_a_folder_leads_to_its_slash_on_whatever_port_the_client_uses(ask):
    answer = ask("app.test:8080", "/static/folder")
    assert (answer.status, answer.header("Location")) == (301, "/static/folder/")


# By itself, nginx would remember for a minute where the link led.
def test_a_switched_link_is_followed_within_seconds(host, ask, eventually):
    assert ask("app.test", "/static/release.txt").body == "one\n"
    try:
        host.check_output("ln -sfn two /srv/current")
        eventually(lambda: ask("app.test", "/static/release.txt").body == "two\n", seconds=30)
    finally:
        host.check_output("ln -sfn one /srv/current")
    eventually(lambda: ask("app.test", "/static/release.txt").body == "one\n", seconds=30)


@pytest.mark.parametrize(("path", "body"), [("/robots.txt", "robots\n"), ("/extra", "extra")])
def test_what_lies_at_the_root_is_served(ask, path, body):
    name, port = ("public.test", 8081) if path == "/robots.txt" else ("leaflet.test", 80)
    assert ask(name, path, at=f"127.0.0.1:{port}").body == body


@pytest.mark.parametrize("path", ["/", "/page"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_app_answers_for_what_does_not(ask, path, method):
    answer = ask("public.test", path, "--request", method, at="127.0.0.1:8081")
    assert (answer.seen["path"], answer.seen["method"]) == (path, method)


def test_a_site_with_no_app_serves_nothing_else(ask):
    assert ask("leaflet.test").status == 404
