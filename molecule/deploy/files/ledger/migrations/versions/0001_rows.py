"""rows"""

from alembic import op

revision, down_revision = "0001", None


def upgrade():
    op.execute("CREATE TABLE rows (id uuid NOT NULL, written timestamptz NOT NULL DEFAULT now())")


def downgrade():
    op.execute("DROP TABLE rows")
