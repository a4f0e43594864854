import shutil

import numpy as np
import polars as pl

from experiments.studies.brand import add_brands, with_brand_dir
from pipeline.encoders import HashingTextEncoder
from pipeline.prepared import load_domain
from pipeline.schema import read_manifest

DOMAINS = ("MiniFood", "MiniOffice")


def test_copies_have_the_brand_and_the_originals_stay(
    make_workspace, data_dir, tmp_path, read_tree
):
    for domain in DOMAINS:
        shutil.copytree(data_dir / "prepared" / domain, tmp_path / "data/prepared" / domain)
    before = read_tree(tmp_path / "data")
    workspace = make_workspace(
        tmp_path, data_dir=tmp_path / "data", pretraining=("MiniFood", "Absent")
    )
    lines = []
    add_brands(workspace, lines.append)
    assert len(lines) == 2
    assert read_tree(tmp_path / "data") == before
    copies = with_brand_dir(workspace)
    keys = set()
    for domain in DOMAINS:
        catalogue = load_domain(copies, domain, ("text", "image", "brand"), {}).catalogue
        brand = catalogue.features["brand"]
        keys.add(brand.encoder_key)
        brands = pl.read_parquet(copies / "prepared" / domain / "items.parquet")["brand"]
        expected = HashingTextEncoder().encode(brands.fill_null("").to_list()).astype(np.float16)
        assert brand.values_IF[1:].numpy().tolist() == expected.tolist()
        assert brand.present_I[1:].tolist() == (expected != 0).any(axis=1).tolist()
        assert brand.present_I.sum() > 30
    assert keys == {"hashed-brand-256"}  # one encoder: models move between the domains

    done = read_tree(copies)
    add_brands(workspace, lines.append)
    assert len(lines) == 2  # not again
    assert read_tree(copies) == done


def test_a_domain_that_was_prepared_again_is_copied_again(make_workspace, data_dir, tmp_path):
    shutil.copytree(data_dir / "prepared/MiniFood", tmp_path / "data/prepared/MiniFood")
    workspace = make_workspace(
        tmp_path, data_dir=tmp_path / "data", pretraining=(), downstream=("MiniFood",)
    )
    add_brands(workspace, lambda line: None)
    manifest = tmp_path / "data/prepared/MiniFood/manifest.json"
    manifest.write_text(manifest.read_text().replace('"k_core": 5', '"k_core": 4'))
    add_brands(workspace, lambda line: None)
    copy = read_manifest(with_brand_dir(workspace) / "prepared/MiniFood")
    assert copy.parameters["prepare"]["k_core"] == 4
    assert [one.modality for one in copy.features] == ["text", "image", "brand"]
