"""What a visitor does, in a real browser, at two sizes and in both colour schemes."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from e2e.conftest import SIZES

PASSWORD = "correct horse battery"


@pytest.fixture
def picture(page: Page, screenshots: Path | None, size: str, scheme: str) -> Callable[[str], None]:
    """Return a function that keeps a screenshot, if E2E_SCREENSHOT_DIR says where."""

    def take(name: str) -> None:
        if screenshots:
            page.screenshot(path=screenshots / f"{size}-{scheme}-{name}.png", animations="disabled")

    return take


@pytest.fixture
def name() -> str:
    """Return a name that nobody has yet."""
    return f"June-{secrets.token_hex(4)}"


def sign_up(page: Page, name: str) -> None:
    """Create an account, as a visitor does."""
    page.goto("/")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Cobalt").check()
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_text("Writing as")).to_contain_text(name)


def entry_of(page: Page, name: str, text: str) -> Locator:
    """Return the post that this user wrote."""
    return page.get_by_role("listitem").filter(has_text=name).filter(has_text=text)


def write(page: Page, name: str, text: str) -> None:
    """Write a post, and see it in the book."""
    page.get_by_label("Your line").fill(text)
    page.get_by_role("button", name="Sign the book").click()
    expect(entry_of(page, name, text)).to_be_visible()


def assert_fits(page: Page) -> None:
    """Nothing sticks out sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_visitor_signs_up_writes_and_leaves(
    page: Page, picture: Callable[[str], None], name: str
) -> None:
    text = "The window seat was free. I take it as a sign."
    page.goto("/")
    expect(page.get_by_label("Name")).to_be_visible()
    expect(page.locator("#list")).to_have_attribute("aria-busy", "false")
    assert_fits(page)
    picture("1-visitor")

    sign_up(page, name)
    write(page, name, text)
    assert_fits(page)
    picture("2-written")

    page.reload()
    entry = entry_of(page, name, text)
    expect(entry).to_contain_text(name)
    expect(page.get_by_text("Writing as")).to_contain_text(name)

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Name")).to_be_visible()
    expect(entry).to_be_visible()
    expect(entry.get_by_role("button")).to_be_hidden()

    page.get_by_role("button", name="I have a name").click()
    page.get_by_label("Name").fill(name.upper())
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Writing as")).to_contain_text(name)

    entry.get_by_role("button", name="Delete").click()
    picture("3-delete")
    page.get_by_role("button", name="Tear it out").click()
    expect(entry).to_have_count(0)
    page.reload()
    expect(page.get_by_text("Writing as")).to_contain_text(name)
    expect(page.locator("#list")).to_have_attribute("aria-busy", "false")
    expect(entry).to_have_count(0)


def test_archive_shows_a_post_on_the_server_rendered_page(
    page: Page, picture: Callable[[str], None], name: str
) -> None:
    text = "Told my friends it was a library, so they would be quiet."
    sign_up(page, name)
    write(page, name, text)
    page.get_by_role("link", name="Archive").click()
    expect(entry_of(page, name, text)).to_be_visible()
    assert_fits(page)
    picture("4-archive")


def test_markup_in_a_post_stays_text(page: Page, name: str) -> None:
    sign_up(page, name)
    write(page, name, "<img src=x onerror=alert(1)>")
    assert page.locator(".entry img").count() == 0


def test_keyboard_alone_reaches_the_entries(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the entries")
    expect(link).to_be_focused()
    expect(link).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#entries")).to_be_focused()


def test_new_post_of_another_reader_is_announced(page: Page, name: str) -> None:
    page.clock.install()
    sign_up(page, name)
    other = page.context.browser.new_context(base_url=page.url, ignore_https_errors=True)
    try:
        stranger = other.new_page()
        sign_up(stranger, f"{name}-2")
        write(stranger, f"{name}-2", "Hello from the next table.")
        page.clock.run_for(21_000)
        fresh = page.get_by_role("button", name="new entr")
        expect(fresh).to_be_visible()
        page.clock.run_for(100)
        expect(page.get_by_role("status")).to_contain_text("new entr")
        fresh.click()
        expect(entry_of(page, f"{name}-2", "Hello from the next table.")).to_be_visible()
    finally:
        other.close()


@pytest.fixture
def stranger(chromium: Browser, base_url: str) -> Iterator[Page]:
    """Return a page whose console may complain, as it does of each refused request."""
    page = chromium.new_page(base_url=base_url, ignore_https_errors=True)
    yield page
    page.close()


def test_form_of_another_site_writes_nothing(stranger: Page, base_url: str, name: str) -> None:
    sign_up(stranger, name)
    form = f"""<form method="post" action="{base_url}/api/posts" enctype="text/plain">
        <input name='{{"body": "Not mine", "x": "' value='"}}'><button>Win</button></form>"""
    stranger.route(
        "https://elsewhere.example/",
        lambda route: route.fulfill(body=form, content_type="text/html"),
    )
    stranger.goto("https://elsewhere.example/")
    with stranger.expect_response(f"{base_url}/api/posts") as answer:
        stranger.get_by_role("button", name="Win").click()
    assert answer.value.status == 400
    stranger.goto("/")
    expect(stranger.locator("#list")).to_have_attribute("aria-busy", "false")
    expect(entry_of(stranger, name, "Not mine")).to_have_count(0)


def test_what_is_too_large_is_answered_while_it_is_sent(stranger: Page) -> None:
    stranger.goto("/")
    send = "fetch('/api/posts', {method: 'POST', body: 'x'.repeat(20000000)}).then(x => x.status)"
    assert stranger.evaluate(send) == 413


def test_page_that_does_not_exist_is_styled(
    chromium: Browser, base_url: str, screenshots: Path | None, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    # Not the page fixture: a browser's console reports each 404.
    page = chromium.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        ignore_https_errors=True,
    )
    try:
        answer = page.goto(f"{base_url}/no-such-page")
        assert answer is not None
        assert answer.status == 404
        expect(page.get_by_role("heading", name="This page was never written.")).to_be_visible()
        assert_fits(page)
        if screenshots:
            page.screenshot(path=screenshots / f"{size}-{scheme}-5-missing.png")
    finally:
        page.close()
