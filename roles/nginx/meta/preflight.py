"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    HOST_NAME_RULE,
    PORT,
    Problem,
    Server,
    check_file_names,
    check_networks,
    check_twins,
    described,
    entries,
    free,
    is_host_name,
)

RANGES = {
    "nginx_cache_size_mb": (1, None),
    "nginx_client_timeout": (1, None),
    "nginx_send_timeout": (1, None),
    "nginx_sites.connect_timeout": (1, None),
    "nginx_sites.listen": PORT,
    "nginx_sites.listen_tls": PORT,
    "nginx_sites.locations.read_timeout": (1, None),
    "nginx_sites.max_conns": (0, None),
    "nginx_sites.read_timeout": (1, None),
    "nginx_sites.redirect_port": PORT,
    "nginx_status_port": (0, 65535),
    "nginx_worker_connections": (1, None),
}
HEADER = re.compile(r"[A-Za-z0-9-]+")
SET = "which nginx sets itself; what a proxy in front says counts with nginx_real_ip_from"
READ = "which nginx reads itself"
NGINX_READS = [
    *("connection", "content-length", "expect", "keep-alive", "range", "te", "trailer", "upgrade"),
    *("if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since"),
    "transfer-encoding",
]
NGINX_SETS = ["host", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"]
PERSONAL = ["authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token"]
OF_NGINX = dict.fromkeys(NGINX_READS, READ) | dict.fromkeys(NGINX_SETS, SET)
OWN_HEADERS = OF_NGINX | dict.fromkeys(["x-forwarded-for", "x-real-ip"], SET)
# Directives of which one takes the place of all those of the levels above it, what these hold here,
# and what to use instead.
REPLACING = {
    "add_header": (
        "the headers that protect visitors, and what keeps others from saying them",
        "headers of the site, which holds for all of its answers,",
    ),
    "proxy_set_header": (
        "Host, the visitor's address, and what keeps visitors from making such headers up",
        "request_headers of the site or of one of its locations",
    ),
    "set_real_ip_from": (
        "the proxies that are believed",
        "nginx_real_ip_from, or nginx_proxy_protocol_from for a balancer that sends PROXY headers,",
    ),
}
SIZE = re.compile(r"[0-9]+[kKmMgG]?")
# What comes before a hash, as nginx and the C library tell its kind, or one of DES.
HASHED = re.compile(r"[^:\s]+:(\$|\{[A-Z]+\}|[./0-9A-Za-z]{13}$)\S*")
TOKEN = re.compile(
    r"""(\#[^\n]*)|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([{};])|((?:\\.|\$\{|[^\s{};\\"'#]|(?<=\S)[#"'])+)""",
    re.S,
)
KEPT_HEADERS = OF_NGINX | dict.fromkeys(
    PERSONAL, "and whoever sends that gets an answer of their own, which is not kept"
)


def present_sites(server: Server) -> list[Mapping[str, Any]]:
    """Return the sites as the role sees them: the user's merged over those of the wiring."""
    sites = [x for x in entries(server, "nginx_sites") if "name" in x]
    return [site for site in sites if site.get("state") != "absent"]


def check_server_names(server: Server) -> Iterator[Problem]:
    """A wrong host name makes a site that nobody reaches."""
    # A mistake in a name of the app's is told as the app's.
    domains = server.values.get("app_domains") or []
    wired = [site.get("name") for site in entries(server, "nginx_default_sites")]
    for site in present_sites(server):
        names = site.get("server_names") or []
        if not names and site["name"] not in wired:
            yield Problem(
                "nginx_sites",
                f"has the site {site['name']!r} with no server_names, so no request could reach it",
            )
        others = site.get("redirect_names") or []
        if others and (not names or names[0].startswith(("~", "*", "."))):
            yield Problem(
                "nginx_sites",
                f"has in the site {site['name']!r} redirect_names, and no plain first name among"
                " server_names to send their visitors to",
            )
        for name in [*names, *others]:
            # nginx takes a regular expression after a tilde.
            if name not in domains and not name.startswith("~") and not is_host_name(name, True):
                yield Problem(
                    "nginx_sites",
                    f"has in the site {site['name']!r} the server name {name!r}, {HOST_NAME_RULE}",
                )


def check_names(server: Server) -> Iterator[Problem]:
    for variable, kind in (("nginx_sites", "sites"), ("nginx_streams", "streams")):
        yield from check_twins(server, variable, kind)
        yield from check_file_names(server, variable, kind)


def check_places(server: Server) -> Iterator[Problem]:
    """Of two sites with one name on one port, nginx serves the first, and hardly says so."""
    places: dict[tuple[Any, str], list[str]] = defaultdict(list)
    for site in present_sites(server):
        for name in [*(site.get("server_names") or []), *(site.get("redirect_names") or [])]:
            places[site.get("listen", 80), name.lower()].append(site["name"])
    for (port, name), sites in places.items():
        if len(sites) > 1:
            where = " and ".join(repr(site) for site in dict.fromkeys(sites))
            yield Problem("nginx_sites", f"serves {name!r} on port {port} twice, in {where}")


def check_proxies(server: Server) -> Iterator[Problem]:
    """The firewall lets in those that nginx believes, and takes no names."""
    known = ("nginx_real_ip_from", "nginx_proxy_protocol_from")
    for variable in known:
        yield from check_networks(variable, server.values.get(variable) or [])
    if all(server.values.get(variable) for variable in known):
        yield Problem(
            known[1],
            f"is set, and so is {known[0]}; nginx takes a visitor's address from one of them, from"
            " PROXY headers or from X-Forwarded-For",
        )


def check_sizes(server: Server) -> Iterator[Problem]:
    """A size that is none would end in the middle of a template."""
    sizes = {"nginx_client_max_body_size": [server.values.get("nginx_client_max_body_size")]}
    sizes["nginx_sites"] = [
        entry.get("client_max_body_size")
        for site in present_sites(server)
        for entry in (site, *(site.get("locations") or []))
    ]
    for variable, texts in sizes.items():
        for text in texts:
            if text not in (None, "") and not SIZE.fullmatch(str(text)):
                yield Problem(
                    variable,
                    f"has the client_max_body_size {text!r}, and needs a number of bytes, or one"
                    " with k, m or g, such as 500m",
                )


def check_passwords(server: Server) -> Iterator[Problem]:
    """With no file, nginx lets nobody in; with a wrong line, not who it is for."""
    if server.failed("nginx_htpasswd"):
        return
    known = server.values.get("nginx_htpasswd") or {}
    asking = {
        site["name"]
        for site in present_sites(server)
        for entry in (site, *(site.get("locations") or []))
        if entry.get("basic_auth")
    }
    for name in sorted(asking - known.keys()):
        yield Problem(
            "nginx_htpasswd",
            f"names nobody who may see the site {name!r}, which has basic_auth, for instance"
            f" {{{name}: {{ann: a password from the vault}}}}",
        )
    for name in sorted(known.keys() - {x["name"] for x in present_sites(server)}):
        yield Problem("nginx_htpasswd", f"names who may see {name!r}, and there is no such site")
    for name, users in known.items():
        if isinstance(users, Mapping):
            wrong = [x for x in users if not re.fullmatch(r"[^:\s]+", str(x))]
            wrong += [x for x, password in users.items() if password in (None, "")]
            rule = "a name is without space and colon, and a password is not empty"
        else:
            lines = str(users).strip().splitlines()
            numbered = [(n, x) for n, x in enumerate(lines, 1) if not x.startswith("#")]
            wrong = [f"line {n}" for n, x in numbered if not HASHED.fullmatch(x)]
            rule = "each line is a name, a colon and a hash, as htpasswd writes it"
        for what in wrong:
            # Not the line itself, which may hold a password.
            yield Problem("nginx_htpasswd", f"has for {name!r} the entry {str(what)!r}; {rule}")


def check_headers(server: Server) -> Iterator[Problem]:
    """A header is in nginx's configuration by its name, and some are nginx's own."""
    for site in present_sites(server):
        for option, own in (("pass_headers", OWN_HEADERS), ("cache_headers", KEPT_HEADERS)):
            for name in map(str, site.get(option) or []):
                what = f"has in {option} of {site['name']!r} the header {name!r}"
                if not HEADER.fullmatch(name):
                    yield Problem("nginx_sites", f"{what}; a name is of letters, digits, '-'")
                elif name.lower() in own:
                    yield Problem("nginx_sites", f"{what}, {own[name.lower()]}")
        yield from check_request_headers(site, f"of {site['name']!r}", OWN_HEADERS)
        for location in site.get("locations") or []:
            # The app goes by the Host that visitors ask for; a service need not know that name.
            spared = ["host"] if location.get("proxy_pass") else []
            own = {x: y for x, y in OWN_HEADERS.items() if x not in spared}
            where = f"of the path {location.get('path')!r} of {site['name']!r}"
            yield from check_request_headers(location, where, own)


def check_request_headers(
    entry: Mapping[str, Any], where: str, own: Mapping[str, str]
) -> Iterator[Problem]:
    headers = entry.get("request_headers")
    for name, value in (headers if isinstance(headers, dict) else {}).items():
        what = f"has in request_headers {where} the header {name!r}"
        if not HEADER.fullmatch(str(name)):
            yield Problem("nginx_sites", f"{what}; a name is of letters, digits, '-'")
        elif name.lower() in own:
            yield Problem("nginx_sites", f"{what}, {own[name.lower()]}")
        elif not str(value).isprintable():
            yield Problem("nginx_sites", f"{what}, whose value has a line end or the like")


def directives(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each directive of nginx's syntax: its name, its arguments, the blocks around it."""
    words: list[str] = []
    blocks: list[str] = []
    for comment, quoted, mark, bare in TOKEN.findall(text):
        if comment:
            continue
        if mark != "}" and not mark:
            words.append(quoted[1:-1] if quoted else bare)
            continue
        if words:
            yield words[0], words[1:], list(blocks)
        if mark == "{":
            blocks.append(" ".join(words))
        elif mark == "}" and blocks:
            blocks.pop()
        words = []


def check_free_text(server: Server) -> Iterator[Problem]:
    """Where nginx finds one of these, it leaves out all those of the levels above."""
    for variable, text, where in free_texts(server):
        for name, arguments, blocks in directives(text):
            inner = f" in {blocks[-1]!r}" if blocks else ""
            replaced = REPLACING.get(name)
            if name == "add_header" and not blocks and where:
                # Beside those of the site, and not in their place.
                continue
            if replaced:
                yield Problem(
                    variable,
                    f"has {' '.join([name, *arguments[:1]])!r}{where}{inner}: nginx would leave out"
                    f" {replaced[0]} there. Take {replaced[1]} instead",
                )


def free_texts(server: Server) -> Iterator[tuple[str, str, str]]:
    yield "nginx_extra_http", str(server.values.get("nginx_extra_http") or ""), ""
    for site in present_sites(server):
        yield "nginx_sites", str(site.get("extra") or ""), f" in extra of {site['name']!r}"


def check_static(server: Server) -> Iterator[Problem]:
    """With a base elsewhere, nginx would follow no link at all, not even that to a release."""
    for site in present_sites(server):
        for static in site.get("static") or []:
            path, base = (str(static.get(x) or "").rstrip("/") + "/" for x in ("path", "base"))
            if static.get("base") and not path.startswith(base):
                yield Problem(
                    "nginx_sites",
                    f"has in {site['name']!r} the static folder {static['path']!r},"
                    f" which is not below its base, {static['base']!r}",
                )


def check_paths(server: Server) -> Iterator[Problem]:
    """What a path is to have, a password for instance, would be left out without a word."""
    for site in present_sites(server):
        folders = [str(x.get("url") or "").rstrip("/") for x in site.get("static") or []]
        for location in site.get("locations") or []:
            what = f"has the path {location.get('path')!r} of {site['name']!r}"
            path = str(location.get("path") or "").removeprefix("^~").strip()
            service = location.get("proxy_pass")
            if path == "/" and service and (site.get("upstreams") or "" in folders):
                rule = "which is the site itself; give the service another path, or its own site"
            elif path == "/" and not service:
                rule = "which is the site itself; say it in the site's own entry"
            elif path != "/" and path.rstrip("/") in folders:
                rule = "which is a static folder; it has what the site's own entry says"
            elif not service and not site.get("upstreams"):
                rule = "which leads nowhere: give it a proxy_pass, or the site upstreams"
            else:
                continue
            yield Problem("nginx_sites", f"{what}, {rule}")


def check_uploads(server: Server) -> Iterator[Problem]:
    """nginx would take two for one URL for a mistake, in its own words."""
    for site in present_sites(server):
        urls = [
            str(x.get(key) or "").rstrip("/")
            for option, key in (("uploads", "url"), ("static", "url"), ("locations", "path"))
            for x in site.get(option) or []
        ]
        for upload in site.get("uploads") or []:
            url, what = str(upload.get("url") or ""), f"has in uploads of {site['name']!r}"
            path, base = (str(upload.get(x) or "").rstrip("/") + "/" for x in ("path", "base"))
            if not url.startswith("/") or not url.strip("/"):
                yield Problem(
                    "nginx_sites", f"{what} the URL {url!r}, and needs a path such as /media/"
                )
            elif urls.count(url.rstrip("/")) > 1:
                yield Problem("nginx_sites", f"{what} the URL {url!r}, which has two meanings")
            if upload.get("base") and not path.startswith(base):
                yield Problem(
                    "nginx_sites",
                    f"{what} the folder {upload['path']!r}, which is not below its base,"
                    f" {upload['base']!r}",
                )


def check_upstreams_tls(server: Server) -> Iterator[Problem]:
    """One of them missing would be told of by nginx, in its own words."""
    for site in present_sites(server):
        has, wanted = site.get("upstreams_tls") or {}, ("certificate", "name", "trusted")
        if has and (set(has) != set(wanted) or not all(has.values())):
            yield Problem(
                "nginx_sites",
                f"has upstreams_tls of {site['name']!r} with {', '.join(map(str, has))}; it is to"
                f" have {', '.join(wanted)}",
            )


def check_ports(server: Server) -> Iterator[Problem]:
    """nginx would not start, after all the rest was done."""
    sites = present_sites(server)
    wanted = {80, *(int(x.get("listen") or 80) for x in sites)}
    wanted |= {int(x.get("listen_tls") or 443) for x in sites if x.get("certificate")}
    told = set()
    for holder in server.found.get("listeners") or []:
        port, who = holder["port"], (holder["name"], holder["pid"])
        if port not in wanted or (port, who) in told:
            continue
        if holder["name"] == "nginx" and holder["unit"] in ("", "nginx.service"):
            continue
        told.add((port, who))
        yield Problem(
            "nginx_sites",
            f"needs port {port}, which {described(holder)} holds on {server.name}",
            free(holder, "give the sites of nginx another listen"),
        )


def check_files(server: Server) -> Iterator[Problem]:
    """A site of that name that somebody has written would be overwritten."""
    found = server.found.get("nginx") or {}
    theirs = found.get("sites") or []
    for site in present_sites(server):
        if site["name"] in (found.get("upstreams") or []):
            app = server.values.get("app_name")
            yield Problem(
                "app_name" if site["name"] == app else "nginx_sites",
                f"has the site {site['name']!r}, and an upstream of that name is in what somebody"
                f" has configured in /etc/nginx on {server.name}: nginx takes a name once",
                "choose another name, or give their upstream another one, where it is used too",
            )
        if f"{site['name']}.conf" in theirs:
            app = server.values.get("app_name")
            path = f"/etc/nginx/sites-enabled/{site['name']}.conf"
            yield Problem(
                "app_name" if site["name"] == app else "nginx_sites",
                f"has the site {site['name']!r}, and {server.name} has {path} already, which is not"
                " from Carafe",
                f"choose another name, or give theirs another one: sudo mv {path}"
                f" /etc/nginx/sites-enabled/{site['name']}-old.conf",
            )


CHECKS = (
    check_ports,
    check_files,
    check_server_names,
    check_names,
    check_places,
    check_proxies,
    check_sizes,
    check_passwords,
    check_headers,
    check_free_text,
    check_static,
    check_paths,
    check_uploads,
    check_upstreams_tls,
)
