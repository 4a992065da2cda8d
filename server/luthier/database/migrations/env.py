"""Alembic's environment: the caller gives the connection and its transaction."""

from alembic import context

from luthier.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
