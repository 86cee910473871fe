"""rows"""

from alembic import op

revision, down_revision = "0001", None


def upgrade():
    op.execute("CREATE TABLE rows (id uuid NOT NULL, written timestamptz NOT NULL DEFAULT now())")
    op.execute(
        "CREATE TABLE jobs (id serial, release text NOT NULL, ended boolean NOT NULL DEFAULT false)"
    )


def downgrade():
    op.execute("DROP TABLE jobs")
    op.execute("DROP TABLE rows")
