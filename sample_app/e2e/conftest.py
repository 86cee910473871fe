"""A headless Chromium, driven by Playwright, against the site at E2E_BASE_URL.

Chromium is the system's: nothing is downloaded. CHROMIUM names another path than Debian's.
E2E_CONNECT is where to connect instead, `HOST:PORT`, as a router would map it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"phone": (390, 844), "desk": (1280, 860)}
"""Width and height in CSS pixels."""

PATIENCE = 60_000
"""Milliseconds to wait for something to appear."""


@pytest.fixture(scope="session")
def base_url() -> str:
    """Return the site's address without a slash at the end; it is an error to give none."""
    url = os.environ.get("E2E_BASE_URL", "").rstrip("/")
    if not url:
        pytest.exit("Set E2E_BASE_URL to the site's address, e.g. http://127.0.0.1:5000.", 2)
    return url


@pytest.fixture(scope="session")
def chromium(base_url: str) -> Iterator[Browser]:
    """Return a browser with a fresh profile, which Playwright removes at the end."""
    with sync_playwright() as playwright:
        # The digest of a private CA's key, which Chromium then trusts, and nothing else besides.
        authority = os.environ.get("E2E_AUTHORITY")
        trust = [f"--ignore-certificate-errors-spki-list={authority}"] if authority else []
        place = os.environ.get("E2E_CONNECT")
        mapped = [f"--host-resolver-rules=MAP {urlsplit(base_url).netloc} {place}"] if place else []
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=[*SWITCHES, *trust, *mapped],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path | None:
    """Return the folder E2E_SCREENSHOT_DIR, made if need be; None when it is not set."""
    folder = os.environ.get("E2E_SCREENSHOT_DIR")
    if not folder:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    """Return the name of a screen's size."""
    return str(request.param)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Return a colour scheme."""
    return str(request.param)


@pytest.fixture
def page(chromium: Browser, base_url: str, size: str, scheme: str) -> Iterator[Page]:
    """Return a page in a browser of its own; a complaint on its console fails the test."""
    width, height = SIZES[size]
    context = chromium.new_context(
        base_url=base_url,
        viewport={"width": width, "height": height},
        device_scale_factor=2 if size == "phone" else 1,
        color_scheme=scheme,
        # A lab's certificate is signed by itself; what is tested here is the app.
        ignore_https_errors=True,
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in {"error", "warning"} else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []
