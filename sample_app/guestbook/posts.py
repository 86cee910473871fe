"""Posts: read them in pages, write one, delete one's own."""

from http import HTTPStatus
from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy import Row, Select, delete, insert, select

from . import inputs
from .accounts import require_user
from .database import BODY_LENGTH, posts, transaction, users
from .errors import ApiError

PAGE_SIZE = 20
"""Posts on a page when the client does not say."""

LARGEST_PAGE = 100

blueprint = Blueprint("posts", __name__, url_prefix="/api/posts")


@blueprint.get("")
def index() -> ResponseReturnValue:
    """Return posts, newest first, and the `before` of the next page, or null on the last one."""
    limit = inputs.number("limit", PAGE_SIZE, 1, LARGEST_PAGE)
    before = inputs.number("before", inputs.LARGEST_ID, 1, inputs.LARGEST_ID)
    page, following = fetch_page(newest_first(), before, limit)
    return jsonify(posts=[shown(row) for row in page], next_before=following)


@blueprint.post("")
def create() -> ResponseReturnValue:
    """Write a post: 201 and the post."""
    user = require_user()
    body = inputs.paragraph(inputs.json_object(), "body", 1, BODY_LENGTH)
    with transaction() as connection:
        post_id = connection.scalar(
            insert(posts).values(user_id=user.id, body=body).returning(posts.c.id)
        )
        row = connection.execute(newest_first().where(posts.c.id == post_id)).one()
    return jsonify(shown(row)), HTTPStatus.CREATED


@blueprint.delete("/<int:post_id>")
def destroy(post_id: int) -> ResponseReturnValue:
    """Delete a post: 204; 404 when there is none, 403 when another user wrote it."""
    user = require_user()
    if post_id > inputs.LARGEST_ID:
        raise ApiError(HTTPStatus.NOT_FOUND, "There is no such post.")
    with transaction() as connection:
        author = connection.scalar(select(posts.c.user_id).where(posts.c.id == post_id))
        if author is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "There is no such post.")
        if author != user.id:
            raise ApiError(HTTPStatus.FORBIDDEN, "Only its author can delete a post.")
        connection.execute(delete(posts).where(posts.c.id == post_id))
    return "", HTTPStatus.NO_CONTENT


def newest_first() -> Select[Any]:
    """Return the query for posts with their authors."""
    return (
        select(posts.c.id, posts.c.body, posts.c.created_at, users.c.name, users.c.ink)
        .join_from(posts, users)
        .order_by(posts.c.id.desc())
    )


def fetch_page(query: Select[Any], before: int, limit: int) -> tuple[list[Row[Any]], int | None]:
    """Return at most `limit` posts with an id below `before`, and the next page's `before`."""
    with transaction() as connection:
        # One row more than asked for tells whether another page follows.
        rows = list(connection.execute(query.where(posts.c.id < before).limit(limit + 1)))
    page = rows[:limit]
    return page, page[-1].id if len(rows) > limit else None


def shown(row: Row[Any]) -> dict[str, Any]:
    """Return what the API tells about a post; its time is in UTC, as in RFC 3339."""
    return {
        "id": row.id,
        "body": row.body,
        "author": row.name,
        "ink": row.ink,
        "created_at": row.created_at.isoformat(),
    }
