"""Documents kept as they came, and no shop to be looked up for each item stored."""

from collections.abc import Sequence

from alembic import op

revision: str = "0005"
down_revision: str | Sequence[str] | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

DOCUMENTS = {
    "item": ("images", "category_path", "props", "extra"),
    "item_version": ("images", "category_path", "props"),
    "change": ("before", "after"),
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("fk_item_shop_id", "item", type_="foreignkey")
        _retype("json")
    else:
        with op.batch_alter_table("item") as batch:
            batch.drop_constraint("fk_item_shop_id", type_="foreignkey")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _retype("jsonb")
        op.create_foreign_key("fk_item_shop_id", "item", "shop", ["shop_id"], ["id"])
    else:
        with op.batch_alter_table("item") as batch:
            batch.create_foreign_key("fk_item_shop_id", "shop", ["shop_id"], ["id"])


def _retype(kind: str) -> None:
    """Give documents this type, each table rewritten once."""
    for table, names in DOCUMENTS.items():
        changes = ", ".join(f'ALTER COLUMN "{name}" TYPE {kind} USING "{name}"::{kind}' for name in names)
        op.execute(f"ALTER TABLE {table} {changes}")
