"""What somebody has configured by hand, and what of it goes on when Carafe configures it.

Used by what looks at a server, and by what writes its files.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# What every template of a role begins with, whatever the sign of its comments.
MANAGED = re.compile(r"\AAnsible managed|^\W*(?:Ansible managed|Managed by Ansible)", re.M)
# Others' roles say that they are managed, too; what a server has one of says next what it is.
CARAFES = re.compile(
    r"^(?:# What all sites share\.|; The supervisord daemon\.|# Managed by Ansible, role \w+\.)",
    re.M,
)
HEAD = 400  # characters in which a file says that it is ours

# --- nginx ------------------------------------------------------------------------------------

TOKEN = re.compile(
    r"""\s+|\#[^\n]*|[{};]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\\.|\$\{|[^\s{};\\])+""", re.S
)
# Of these a configuration has any number, so that those of others stand beside ours.
MANY = {
    *(
        "geo",
        "include",
        "limit_conn_zone",
        "limit_req_zone",
        "log_format",
        "map",
        "match",
        "server",
    ),
    *("split_clients", "upstream", "uwsgi_cache_path", "fastcgi_cache_path", "scgi_cache_path"),
    *("proxy_cache_path", "perl_set", "js_import", "js_set", "auth_jwt_key_file"),
}
# What nginx.conf of the role nginx says itself; nginx refuses to hear it twice.
# tests/test_templates.py holds this against the template.
OURS = {
    *("absolute_redirect", "access_log", "brotli", "brotli_comp_level", "brotli_min_length"),
    *("brotli_types", "client_body_timeout", "client_header_timeout", "default_type", "gzip"),
    *("gzip_comp_level", "gzip_min_length", "gzip_proxied", "gzip_types", "gzip_vary"),
    *("keepalive_requests", "keepalive_timeout", "large_client_header_buffers"),
    *("limit_conn_log_level", "limit_conn_status"),
    *("limit_req_log_level", "limit_req_status", "open_file_cache", "open_file_cache_valid"),
    *("proxy_buffer_size", "proxy_buffers", "proxy_headers_hash_bucket_size"),
    *("proxy_headers_hash_max_size", "proxy_http_version", "proxy_set_header", "real_ip_header"),
    *("real_ip_recursive", "reset_timedout_connection", "send_timeout", "sendfile"),
    *("server_names_hash_bucket_size", "server_tokens", "set_real_ip_from", "ssl_ciphers"),
    *("ssl_ecdh_curve", "ssl_protocols", "ssl_session_cache", "ssl_session_tickets"),
    # Debian's nginx.conf says it, and nobody has chosen it.
    "ssl_prefer_server_ciphers",
    *("ssl_session_timeout", "tcp_nopush", "types", "types_hash_max_size"),
    *("variables_hash_max_size",),
}
# What it says once, of which nginx takes any number.
OUR_VARIABLES = {
    *("$visitor", "$trusted_proxy", "$forwarded_proto", "$visitor_port", "$upgrade"),
    *("$connection_upgrade", "$named_request_id"),
}
# What it includes itself.
INCLUDED = re.compile(r"(?:/etc/nginx/)?(?:mime\.types|conf\.d/\*(?:\.conf)?|sites-enabled/\S*)")


@dataclass
class Statement:
    """A directive of nginx's with its words, and what stands between its braces."""

    words: list[str]
    text: str
    inner: str | None = None

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def title(self) -> str:
        return " ".join(self.words[: 2 if self.name in MANY else 1])


def statements(text: str) -> list[Statement]:
    """Return what stands at the top of a configuration, with its text as it was written.

    Raises ValueError where the braces do not match.
    """
    found: list[Statement] = []
    words: list[str] = []
    start = opened = depth = 0
    for token in TOKEN.finditer(text):
        mark = token[0]
        if mark.isspace() or mark.startswith("#"):
            continue
        if mark == "{":
            depth += 1
            opened = token.end() if depth == 1 else opened
        elif mark == "}":
            depth -= 1
        if depth < 0:
            raise ValueError("a brace is closed that was not opened")
        if not words:
            start = token.start()
        if depth == 0 and mark in ";}":
            if words:
                inner = text[opened : token.start()] if mark == "}" else None
                found.append(Statement(words, text[start : token.end()], inner))
            words = []
        elif depth == 0:
            words.append(mark.strip("\"'"))
    if depth:
        raise ValueError("a brace is opened and not closed")
    return found


def top(text: str) -> list[Statement]:
    """Return the statements of a file, none of one that nginx could not read either."""
    try:
        return statements(text)
    except ValueError:
        return []


def inside(text: str, block: str) -> list[Statement]:
    """Return what stands in the blocks of this name, at the top of a configuration."""
    blocks = [x.inner for x in top(text) if x.name == block and x.inner is not None]
    return [inner for block in blocks for inner in top(block)]


def is_ours(statement: Statement) -> bool:
    """Tell whether our nginx.conf says it, so that it cannot be said beside it."""
    words = statement.words
    if statement.name == "include":
        return len(words) > 1 and bool(INCLUDED.fullmatch(words[1]))
    if statement.name in ("map", "geo", "split_clients"):
        return words[-1] in OUR_VARIABLES
    if statement.name == "log_format":
        return words[1:2] == ["timed"]
    return statement.name in OURS


def split(text: str) -> tuple[list[Statement], list[Statement]]:
    """Return what goes on of the block http of somebody's nginx.conf, and what does not."""
    found = inside(text, "http")
    return [x for x in found if not is_ours(x)], [x for x in found if is_ours(x)]


# What nginx writes while it runs, and where the role's sandbox lets it.
WRITES = re.compile(r"(?:access|error)_log|\w+_(?:cache|temp)_path")
WRITABLE = ("/run", "/var/run", "/var/log/nginx", "/var/lib/nginx", "/var/cache/nginx", "/dev")


def written(texts: Iterable[str]) -> list[str]:
    """Return the folders that nginx writes by these configurations, beyond those of the sandbox."""

    def below(text: str) -> Iterator[Statement]:
        for statement in top(text):
            yield statement
            yield from below(statement.inner or "")

    found = set()
    for statement in (x for text in texts for x in below(text)):
        path = statement.words[1] if len(statement.words) > 1 else ""
        # A path may have a variable in it.
        if WRITES.fullmatch(statement.name) and path.startswith("/"):
            place = Path(path.partition("$")[0])
            whole = statement.name.endswith("_path") or "$" in path
            found.add(str(place if whole else place.parent))
    return sorted(
        x for x in found if not any(Path(x).is_relative_to(inside) for inside in WRITABLE)
    )


def default_ports(texts: Iterable[str]) -> set[int]:
    """Return the ports whose default server is one of these configurations."""
    found = set()
    for text in texts:
        for words in (x.words for x in inside(text, "server")):
            if words[0] == "listen" and {"default_server", "default"} & {*words[2:]}:
                port = words[1].rpartition(":")[2]
                found.add(int(port) if port.isdecimal() else 80)
    return found


DROP_IN = Path("/etc/systemd/system/nginx.service.d/adopted.conf")
HEADER = """\
# What stood in {path} before Ansible wrote it, and is not said there any more. It is yours now:
# no run of Carafe changes this file again.
"""


def nginx(
    path: Path, text: str, others: Iterable[str] = (), writes: Iterable[str] = ()
) -> dict[Path, str]:
    """Return the files in which an nginx.conf that somebody has written goes on.

    ``others`` are the sites whose names do not end as those that our nginx.conf reads, and
    ``writes`` the folders that nginx has to write besides.
    """
    folder = path.parent
    kept = [x.text for x in split(text)[0]]
    kept += [f"include sites-enabled/{name};" for name in others]
    found = {}
    if kept:
        found[folder / "conf.d/adopted.conf"] = "\n".join(kept)
    streams = [
        x.text for x in inside(text, "stream") if x.name != "include" or "sites" not in x.text
    ]
    if streams:
        found[folder / "sites-enabled/adopted.stream"] = "\n".join(streams)
    if writes := list(writes):
        lines = ["[Service]", f"ReadWritePaths={' '.join(f'-{x}' for x in writes)}"]
        found[DROP_IN] = "\n".join(lines)
    return {k: f"{HEADER.format(path=path)}\n{v}\n" for k, v in found.items()}


def other_sites(folder: Path, text: str) -> list[str]:
    """Return the sites that somebody's nginx.conf reads, and ours does not by itself."""
    words = [x.words[1] for x in inside(text, "http") if x.name == "include" and len(x.words) > 1]
    patterns = [x.removeprefix("/etc/nginx/") for x in words]
    return sorted(
        x.name
        for x in folder.glob("sites-enabled/*")
        if x.suffix not in (".conf", ".stream")
        and x.is_file()
        and not x.name.startswith(".")
        and any(fnmatch.fnmatch(f"sites-enabled/{x.name}", pattern) for pattern in patterns)
    )


# --- supervisord ------------------------------------------------------------------------------

SECTION = re.compile(r"^\[(?P<name>[^\]]+)\][^\n]*\n?", re.M)
PROGRAMS = ("program:", "fcgi-program:", "eventlistener:", "group:")
# What ours has, whatever is in it.
PLAIN = ("unix_http_server", "supervisord", "rpcinterface:supervisor", "supervisorctl", "include")


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the sections of an ini file, each with its text as it was written."""
    starts = list(SECTION.finditer(text))
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        end = following.start() if following else len(text)
        yield start["name"].strip(), text[start.start() : end]


def programs(text: str) -> list[str]:
    return [name for name, _ in sections(text) if name.startswith(PROGRAMS)]


def includes(text: str) -> list[str]:
    """Return the patterns of files that a supervisord.conf reads besides those that ours does."""
    found = []
    for name, body in sections(text):
        if name != "include":
            continue
        value = re.search(r"^files\s*[=:](.*(?:\n[ \t]+\S.*)*)", body, re.M)
        found += value[1].split() if value else []
    standard = re.compile(r"(?:/etc/supervisor/)?conf\.d/\*\.conf")
    return [x for x in found if not standard.fullmatch(x)]


def supervisor(path: Path, text: str) -> dict[Path, str]:
    """Return the file in which the programs of somebody's supervisord.conf go on."""
    kept = [body.rstrip() for name, body in sections(text) if name.startswith(PROGRAMS)]
    if not kept:
        return {}
    header = HEADER.format(path=path).replace("# ", "; ")
    return {path.parent / "conf.d/adopted.conf": "\n\n".join([header, *kept]) + "\n"}


# --- PostgreSQL -------------------------------------------------------------------------------

# As Debian's pg_createcluster writes them, of which the superuser's is ours.
DEBIAN = {
    "local all postgres peer",
    "local all all peer",
    "host all all 127.0.0.1/32 scram-sha-256",
    "host all all ::1/128 scram-sha-256",
    "local replication all peer",
    "host replication all 127.0.0.1/32 scram-sha-256",
    "host replication all ::1/128 scram-sha-256",
}
SUPERUSER = re.compile(r"local\s+all(?:,replication)?\s+postgres\s")


def hba_lines(text: str) -> list[str]:
    """Return the lines of a pg_hba.conf that say something, in their order."""
    joined = re.sub(r"\\\n", " ", text)
    lines = [re.sub(r"\s+#.*", "", x).strip() for x in joined.splitlines()]
    return [x for x in lines if x and not x.startswith("#")]


def is_debians(text: str) -> bool:
    """Tell whether a pg_hba.conf is as Debian's package has made it."""
    return {" ".join(x.split()) for x in hba_lines(text)} <= DEBIAN


def hba(text: str) -> list[str]:
    """Return the lines of somebody's pg_hba.conf that go on, after ours."""
    return [x for x in hba_lines(text) if not SUPERUSER.match(x)]


def is_managed(text: str) -> bool:
    return bool(MANAGED.search(text[:HEAD]))


def is_carafes(text: str) -> bool:
    """Tell whether a service's main file is Carafe's, and not that of somebody's other roles."""
    return bool(CARAFES.search(text[:HEAD]))
