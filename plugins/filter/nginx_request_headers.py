"""Which headers nginx tells an app, for the site's file and for nginx.conf."""

from __future__ import annotations

DOCUMENTATION = """
name: nginx_request_headers
short_description: Work out which headers nginx tells an app
description:
  - nginx's C(proxy_set_header) at one level replaces all those of the levels above, so each level
    that has one needs them all.
  - What nginx sets itself is passed on for nobody, and what C(dropped) names only where a site
    asks for it.
positional: variable
options:
  _input:
    description: The entry of C(nginx_sites), or an empty dictionary for what holds for every site.
    type: dict
    required: true
  variable:
    description: What the names of the site's own variables begin with.
    type: str
    default: ""
  behind_proxy:
    description: Whether a proxy in front is believed about the scheme, and what the site passes.
    type: bool
    default: false
  own:
    description: The headers that nginx sets, or reads itself, in small letters.
    type: list
    elements: str
    required: true
  personal:
    description: The headers that make a visitor somebody, in small letters.
    type: list
    elements: str
    required: true
  dropped:
    description: The headers by which apps let themselves be told what nginx knows better.
    type: list
    elements: str
    required: true
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Show what the app of a site is told
  ansible.builtin.debug:
    msg: "{{ site | carafe.stack.nginx_request_headers('shop', own=[], personal=[], dropped=[]) }}"
"""

RETURN = """
_value:
  description: The headers, each a name and a value as nginx.conf has it.
  type: dict
  contains:
    own:
      description: Whether this app is told something that others are not.
      type: bool
    told:
      description: What the app is told.
      type: list
    believed:
      description: Variables that the proxy in front may set, and nobody else, and from what.
      type: dict
    cached:
      description: What the app is told where the cache may keep its answer.
      type: list
    key:
      description: The values on which a cached answer may depend.
      type: list
    personal:
      description: The variables of which one makes the answer somebody's, when it is set.
      type: list
"""

import json
from collections.abc import Callable, Collection, Iterable
from typing import Any

ADDRESS = ("x-real-ip", "x-forwarded-for")


def of_visitor(header: str) -> str:
    """Return nginx's variable of a header, of the address where a header stands for it."""
    return "$remote_addr" if header in ADDRESS else "$http_" + header.replace("-", "_")


def lowered(headers: Iterable[str], without: Collection[str]) -> list[str]:
    """Return headers in small letters, each once and in their order."""
    return list(dict.fromkeys(x.lower() for x in headers if x.lower() not in without))


def replaced(headers: dict[str, str], by: dict[str, str]) -> dict[str, str]:
    """Return the headers with others added, or in the place of those of the same name."""
    names = {x.lower() for x in by}
    kept = {x: y for x, y in headers.items() if x.lower() not in names}
    return kept | {x: json.dumps(str(y)) for x, y in by.items()}


def nginx_request_headers(
    site: dict[str, Any],
    variable: str = "",
    *,
    own: list[str],
    personal: list[str],
    dropped: list[str],
    behind_proxy: bool = False,
) -> dict[str, Any]:
    """Return the headers that nginx tells an app, see DOCUMENTATION."""
    passed = lowered(site.get("pass_headers", []), own)
    held_back = [x for x in dropped if x.lower() not in passed]
    kept_by = lowered(
        site.get("cache_headers", []), {*personal, *own, *(x.lower() for x in held_back)}
    )
    scheme = "$forwarded_proto" if behind_proxy else "$scheme"

    said = {x: of_visitor(x) for x in [*passed, *kept_by]}
    believed = {}
    if behind_proxy:
        # Who asks is in the address already, by nginx_real_ip_from.
        names = [x for x in passed if x not in ADDRESS]
        believed = {f"${variable}_passed_{n}": said[x] for n, x in enumerate(names, 1)}
        said |= dict(zip(names, believed, strict=True))

    place = {
        "Host": "$host$named_port",
        "X-Forwarded-Proto": scheme,
        "X-Forwarded-Host": "$host$named_port",
        "X-Forwarded-Port": "$visitor_port",
    }
    told = place | {
        "X-Real-IP": "$remote_addr",
        "X-Forwarded-For": "$remote_addr",
        "Upgrade": "$upgrade",
        "Connection": "$connection_upgrade",
        "X-Request-ID": "$named_request_id" if behind_proxy else "$request_id",
    }
    told |= dict.fromkeys(held_back, '""')
    # Where no proxy is believed, what a visitor says goes through as it is.
    told |= {x: said[x] for x in passed if said[x] in believed}
    told, place = (replaced(x, site.get("request_headers", {})) for x in (told, place))

    # An app with no address to go by would take the server's own for the visitor's.
    nobody = "0.0.0.0"  # nosec B104 # no address to listen on
    same_for_all = {"X-Real-IP": nobody, "X-Forwarded-For": nobody, "User-Agent": "nginx"}
    cached = place | {x: said[x] for x in kept_by}
    cached |= {x: y for x, y in same_for_all.items() if x.lower() not in kept_by}
    key = [*place.values(), "$request_uri", *(said[x] for x in kept_by)]
    return {
        "own": bool(passed or site.get("request_headers")),
        "told": list(told.items()),
        "believed": believed,
        "cached": list((cached | {"Connection": "close"}).items()),
        "key": list(dict.fromkeys(x.strip('"') for x in key)),
        "personal": [
            "$http_" + x.replace("-", "_") for x in [*personal, *passed] if x not in kept_by
        ],
    }


class FilterModule:
    """Ansible asks it for the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"nginx_request_headers": nginx_request_headers}
