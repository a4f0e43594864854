"""The brand as a third modality: prepared domains beside the original ones, with one more stream.

A domain's manifest names the data of every run, so the copies lie in a data folder of their own:
what has been trained on the original ones stays valid.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from experiments.workspace import Workspace
from mmm4rec.run_folder import Echo
from pipeline.added_features import add_feature_column
from pipeline.encoders import HashingTextEncoder
from pipeline.schema import ITEMS, atomic_path, prepared_dir, read_manifest

BRAND = "brand"
ENCODER = "hashed-brand"


def with_brand_dir(workspace: Workspace) -> Path:
    """Return the data folder of the copies."""
    return workspace.data_dir.with_name(f"{workspace.data_dir.name}-with-{BRAND}")


def add_brands(workspace: Workspace, echo: Echo) -> None:
    """Copy the world's prepared domains and add the brand; what is there is not made again."""
    names = dict.fromkeys((*workspace.pretraining, *workspace.downstream))
    for domain in names:
        if workspace.manifest(domain) is not None:
            _add_brand(workspace.data_dir, with_brand_dir(workspace), domain, echo)


def _add_brand(data_dir: Path, into: Path, domain: str, echo: Echo) -> None:
    folder, target = prepared_dir(data_dir, domain), prepared_dir(into, domain)
    if _is_done(folder, target):
        return
    with atomic_path(target) as temporary:
        shutil.copytree(folder, temporary)
    items = pl.read_parquet(folder / ITEMS, columns=["asin", BRAND])
    file = into / f"{domain}-{BRAND}.parquet"
    brands = items[BRAND].fill_null("").to_list()
    vectors_NF = HashingTextEncoder().encode(brands)
    vectors = pl.Series("vector", vectors_NF, dtype=pl.Array(pl.Float32, vectors_NF.shape[1]))
    with atomic_path(file) as temporary:
        items.select("asin").with_columns(vectors).write_parquet(temporary)
    add_feature_column(into, domain, BRAND, file, encoder=ENCODER, echo=echo)


def _is_done(folder: Path, target: Path) -> bool:
    if not target.is_dir():
        return False
    copy = read_manifest(target)
    others = [one for one in copy.features if one.modality != BRAND]
    is_same = copy.model_copy(update={"features": others}) == read_manifest(folder)
    return is_same and len(others) < len(copy.features)
