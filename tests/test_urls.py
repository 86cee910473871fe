"""A password or token in a URL is found, whatever the URL is for, and is never shown."""

from __future__ import annotations

import re

import pytest
from ansible_collections.carafe.stack.plugins.plugin_utils.urls import (
    credential,
    credential_in,
    without_credentials,
)

# Not as one text, so that no scanner takes it for a token of somebody's.
GITHUB, GITLAB = "ghp" + "_" + "hush" * 9, "glpat" + "-" + "hush" * 5
REFUSED = [
    "https://ann:hush@git.test/shop.git",
    "https://hush@git.test/shop.git",
    "HTTPS://ann:hush@git.test/shop.git",
    "https://ann:@git.test/hush.git",
    "https://:hush@git.test/shop.git",
    "https://ann:hu/sh@git.test/shop.git",
    "https://ann:hu@sh@git.test/shop.git",
    "https://ann%3Ahush@git.test/shop.git",
    "https://x-access-token:hush@git.test/shop.git",
    "https://oauth2:hush@git.test/shop.git",
    f"https://{GITHUB}@git.test/shop.git",
    f"https://{GITLAB}:@git.test/shop.git",
    f"https://git.test/{GITLAB}/shop.git",
    "https://git.test/shop.git?access_token=hush",
    "https://git.test/shop.git?private_token=hush",
    "https://git.test/shop.git?depth=1&PRIVATE_TOKEN=hush",
    "https://git.test/shop.git?a=b;access%5Ftoken=hush",
    "https://git.test/shop.git#access_token=hush",
    "https://git.test/x?X-Amz-Signature=hush",
    "https://git.test/x?apiKey=hush",
    "ssh://git:hush@git.test/shop.git",
    "git+ssh://git:hush@git.test/shop.git",
    "git:hush@git.test:shop.git",
    "git+https://ann:hush@git.test/shop.git",
    "shop @ git+https://hush@git.test/shop.git@v1 ; python_version > '3'",
    "--extra-index-url https://ann:hush@index.test/simple",
    "--index-url=https://__token__:hush@index.test/simple",
    "redis://:hush@cache.test/0",
    "postgresql+psycopg://shop:hush@db.test/shop",
    "ftp://ann:hush@files.test/x",
    "curl -sf 'https://hush.test:hush@files.test/x' && curl https://plain.test",
    "curl https://plain.test 'https://ann:hush@files.test'",
]
TAKEN = [
    "",
    "flask==3.1.3",
    "git@git.test:shop.git",
    "deploy@git.test:22/shop.git",
    "ssh://git@git.test/shop.git",
    "ssh://git@git.test:2222/shop.git",
    "git+ssh://git@git.test/shop.git@v1",
    "git+https://git@git.test/shop.git",
    "https://git.test/shop.git",
    "https://git.test/a@b.git",
    "https://git.test:8443/a@b.git",
    "http://[2001:db8::1]:8000/a@b",
    "https://git.test/shop.git?ref=main&depth=1#egg=shop&subdirectory=token",
    "https://index.test/x.whl#sha256=" + "ab" * 32,
    "--extra-index-url https://${USER}:${TOKEN}@index.test/simple",
    "--extra-index-url https://ann:${TOKEN}@index.test/simple",
    "curl https://$TOKEN@files.test/x?key=$KEY",
    "shop @ https://files.test/shop-1.0-py3-none-any.whl",
    "redis://cache.test/0",
    "postgresql://shop@/shop?host=/run/postgresql",
    "image: registry.test/shop:1@sha256:" + "ab" * 32,
    "mail ann@shop.test: is it https://shop.test?",
    "C:\\git\\shop",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_credential_is_found_and_not_shown(text: str) -> None:
    found = credential(text)
    assert "in its URL" in found
    assert "hush" not in found
    assert "in its URL" in credential_in([{"x": ["", text]}])


@pytest.mark.parametrize("text", TAKEN)
def test_a_url_without_one_passes(text: str) -> None:
    assert credential(text) == ""
    assert credential_in({"x": [text, 1, None]}) == ""
    if "$" not in text:
        # A message says no more of who asks than it must.
        assert without_credentials(text) in (text, re.sub("//(git|shop)@", "//", text))


@pytest.mark.parametrize("text", [x for x in REFUSED if "hu/sh" not in x and "://" in x])
def test_a_message_has_none(text: str) -> None:
    said = without_credentials(f"fatal: could not read {text} twice")
    assert "hush" not in said.replace("hush.git", "").replace("hush.test", "")
    assert said.endswith(" twice")
