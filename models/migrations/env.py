"""Alembic's entry point: runs migrations on the connection handed over, or on the configured database."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from models.database import create_engine
from models.settings import load_settings
from models.tables import metadata


def _run(connection: Connection) -> None:
    # SQLite cannot alter tables in place: batch mode copies them.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _run_on_configured_database() -> None:
    engine = create_engine(load_settings().database)
    async with engine.begin() as connection:
        await connection.run_sync(_run)
    await engine.dispose()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _run(handed_over)
else:
    asyncio.run(_run_on_configured_database())
