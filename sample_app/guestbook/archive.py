"""The archive: every post, by month, rendered on the server.

It is the same for everyone and never touches the session, so that a proxy may cache it.
"""

import re
from datetime import UTC, datetime
from itertools import groupby

from flask import Blueprint, Response, abort, current_app, make_response, render_template, request
from sqlalchemy import func, select

from . import inputs
from .database import posts, transaction
from .errors import ApiError
from .posts import fetch_page, newest_first

PAGE_SIZE = 30
"""Posts on a page."""

blueprint = Blueprint("archive", __name__)


@blueprint.get("/archive")
def index() -> Response:
    """Show the posts of all months, or of `?month=2026-05`; months are in UTC."""
    try:
        before = inputs.number("before", inputs.LARGEST_ID, 1, inputs.LARGEST_ID)
    except ApiError:
        abort(404)
    chosen = month_of(request.args.get("month"))
    query = newest_first()
    if chosen:
        query = query.where(posts.c.created_at >= chosen, posts.c.created_at < month_after(chosen))
    page, following = fetch_page(query, before, PAGE_SIZE)
    groups = [
        (month, list(rows))
        for month, rows in groupby(page, lambda row: month_start(row.created_at))
    ]
    response = make_response(
        render_template(
            "archive.html",
            groups=groups,
            months=months(),
            chosen=chosen,
            following=following,
            first_page=before == inputs.LARGEST_ID,
        )
    )
    signed_in = current_app.config["SESSION_COOKIE_NAME"] in request.cookies
    # A writer wants to see what was just posted; all others can share one copy for a while.
    response.headers["Cache-Control"] = "private, no-store" if signed_in else "public, max-age=10"
    response.vary.add("Cookie")
    return response


def months() -> list[tuple[datetime, int]]:
    """Return each month that has posts, newest first, with their number."""
    month = func.date_trunc("month", posts.c.created_at, "UTC").label("month")
    query = select(month, func.count()).group_by(month).order_by(month.desc())
    with transaction() as connection:
        return [(month_start(start), count) for start, count in connection.execute(query)]


def month_of(value: str | None) -> datetime | None:
    """Return the start of the month that `value` names as YYYY-MM; anything else is a 404."""
    if not value:
        return None
    if not re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", value):
        abort(404)
    return datetime(int(value[:4]), int(value[5:]), 1, tzinfo=UTC)


def month_start(moment: datetime) -> datetime:
    """Return the first instant of the moment's month, in UTC."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def month_after(start: datetime) -> datetime:
    """Return the start of the next month."""
    return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
