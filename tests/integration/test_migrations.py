"""The schema that migrations build is the schema the code means, on both databases, and versions are told plainly."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from models.database import head_version, known_versions, require_schema, schema_state, upgrade
from models.errors import UnavailableError
from models.tables import metadata
from tests.ledger import engine_for, submit
from tests.servers import PostgresServer


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "models:migrations")
    config.attributes["connection"] = connection
    return config


def test_file_names_tell_the_versions_in_the_order_in_which_they_build_on_each_other() -> None:
    config = Config()
    config.set_main_option("script_location", "models:migrations")
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert known_versions() == [script.revision for script in reversed(scripts)]
    assert [head_version()] == ScriptDirectory.from_config(config).get_heads()


async def test_an_emptied_version_table_counts_as_no_tables_yet(database_url: str) -> None:
    async with engine_for(database_url) as engine:
        async with engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM alembic_version"))
        assert await schema_state(engine) == (None, head_version())


async def test_migrations_and_tables_agree(database_url: str) -> None:
    async with engine_for(database_url) as engine, engine.connect() as connection:

        def differences(sync: sa.Connection) -> list[object]:
            return list(compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata))

        assert await connection.run_sync(differences) == []


async def test_an_upgraded_database_is_ready_and_upgrading_it_again_changes_nothing(database_url: str) -> None:
    async with engine_for(database_url) as engine:
        assert await schema_state(engine) == (head_version(), head_version())
        await require_schema(engine)
        await submit(engine, "a")
        assert await upgrade(engine) == head_version()
        async with engine.connect() as connection:
            assert await connection.scalar(sa.text("SELECT count(*) FROM page")) == 1


async def test_a_downgrade_to_nothing_leaves_nothing_and_can_be_upgraded_again(database_url: str) -> None:
    async with engine_for(database_url) as engine:
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: command.downgrade(_config(sync), "base"))
        async with engine.connect() as connection:
            left = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        assert set(left) <= {"alembic_version"}
        await upgrade(engine)
        await submit(engine, "a")


async def test_an_empty_database_is_told_its_cure(tmp_path: Path) -> None:
    async with engine_for(f"sqlite:///{tmp_path}/empty.db") as engine:
        assert (await schema_state(engine))[0] is None
        with pytest.raises(UnavailableError, match="run `shopcrawl db upgrade`"):
            await require_schema(engine)


async def test_a_database_of_a_newer_shopcrawl_is_told_its_cure(database_url: str) -> None:
    async with engine_for(database_url) as engine:
        async with engine.begin() as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(UnavailableError, match=r"version 9999.*newer shopcrawl"):
            await require_schema(engine)


async def test_machines_that_start_at_once_upgrade_one_after_the_other(postgres_server: PostgresServer) -> None:
    postgres_server.start()
    url = postgres_server.create_database()
    try:
        async with engine_for(url) as one, engine_for(url) as two, engine_for(url) as three:
            versions = await asyncio.gather(upgrade(one), upgrade(two), upgrade(three))
            assert set(versions) == {head_version()}
            await require_schema(one)
    finally:
        postgres_server.drop_database(url)


async def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    async with engine_for("postgresql://user:canary-pw@127.0.0.1:1/nowhere") as engine:
        with pytest.raises(UnavailableError) as caught:
            await require_schema(engine)
    assert "SHOPCRAWL_DATABASE_URL" in str(caught.value)
    assert "canary-pw" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.exit_code == 2
