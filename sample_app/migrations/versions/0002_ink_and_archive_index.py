"""Give users an ink, and the archive an index by time.

The release before this one keeps working on the new schema: the column has a default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002_ink_and_archive_index"
down_revision = "0001_users_and_posts"


def upgrade() -> None:
    """Apply this migration."""
    op.add_column("users", sa.Column("ink", sa.String(16), server_default="claret", nullable=False))
    op.create_index("ix_posts_created_at", "posts", ["created_at"])


def downgrade() -> None:
    """Undo this migration."""
    op.drop_index("ix_posts_created_at", "posts")
    op.drop_column("users", "ink")
