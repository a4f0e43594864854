import polars as pl
import pytest

from pipeline.schema import sha256_file
from pipeline.tables import (
    INTERACTION_SCHEMA,
    ITEM_SCHEMA,
    METADATA_SCHEMA,
    RAW_INTERACTION_SCHEMA,
    USER_SCHEMA,
    write_parquet,
)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    table = pl.DataFrame({"item_id": range(1000), "text": [f"item {i}" for i in range(1000)]})
    write_parquet(table, tmp_path / "a.parquet")
    write_parquet(table.clone(), tmp_path / "b.parquet")
    assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "schema",
    [INTERACTION_SCHEMA, USER_SCHEMA, ITEM_SCHEMA, RAW_INTERACTION_SCHEMA, METADATA_SCHEMA],
)
def test_column_types_read_back(tmp_path, schema):
    write_parquet(pl.DataFrame(schema=schema), tmp_path / "table.parquet")
    assert pl.read_parquet_schema(tmp_path / "table.parquet") == schema
