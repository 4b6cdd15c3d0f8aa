"""Alembic environment: the connection comes from `store.migrate`."""

from alembic import context

from store.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
