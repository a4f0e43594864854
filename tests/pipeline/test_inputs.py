import re

import pytest

from mmm4rec.errors import ConfigError, DataError
from pipeline import inputs
from pipeline.inputs import AmazonFiles, resolve_inputs

OFFICE = ("Office_Products.csv", "meta_Office_Products.json.gz")
ATOMIC = ("Office.test.inter", "Office.text", "Office.item2index", "Office.user2index")


def _touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    "names",
    [
        OFFICE,
        ("Office_Products.csv.gz", "meta_Office_Products.json"),
        ("Office_Products.json.gz", "meta_Office_Products.json.gz"),
        ("Office_Products_5.json.gz", "meta_Office_Products.json.gz"),
        ("Office.csv", "meta_Office.json.gz"),
    ],
)
@pytest.mark.parametrize("place", [".", "Office_Products", "Office"])
@pytest.mark.parametrize("domain", ["Office", "Office_Products"])
def test_raw_files_in_a_folder_are_used_in_place(tmp_path, names, place, domain):
    _touch(tmp_path / place, *names)
    found = resolve_inputs(domain, str(tmp_path), tmp_path / "raw")
    assert found == AmazonFiles(*(tmp_path / place / name for name in names))
    assert [path.name for path in found.files] == list(names)
    assert not (tmp_path / "raw").exists()


def test_ratings_are_taken_before_reviews_and_raw_before_atomic(tmp_path):
    _touch(tmp_path, "Office_Products_5.json.gz", *OFFICE, *ATOMIC)
    found = resolve_inputs("Office", str(tmp_path), tmp_path)
    assert [path.name for path in found.files] == list(OFFICE)


def test_an_atomic_set_in_a_folder_is_used_in_place(tmp_path):
    _touch(tmp_path, *ATOMIC, "Office_Products.csv")  # ratings without metadata are no raw files
    found = resolve_inputs("Office", str(tmp_path), tmp_path)
    assert [path.name for path in found.files] == list(ATOMIC)


def test_a_domain_of_the_users_own_is_found_by_its_name(tmp_path):
    _touch(tmp_path / "Mine", "Mine.csv", "meta_Mine.json.gz")
    found = resolve_inputs("Mine", str(tmp_path), tmp_path)
    assert found.interactions == tmp_path / "Mine" / "Mine.csv"


def test_missing_files_are_named_with_the_folders_looked_in(tmp_path):
    _touch(tmp_path, "Office_Products.csv")
    with pytest.raises(DataError, match="no raw files of Office there") as error:
        resolve_inputs("Office", str(tmp_path), tmp_path)
    for name in (*OFFICE, *ATOMIC, "Office_Products_5.json", str(tmp_path / "Office")):
        assert re.search(rf"[ ,]{re.escape(name)}[ ,;.]", str(error.value))


def test_a_source_that_is_neither_folder_nor_web_address_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="--source ftp://x: an address begins with http"):
        resolve_inputs("Office", "ftp://x", tmp_path)
    with pytest.raises(DataError, match=r"none: no raw files of Office there"):
        resolve_inputs("Office", str(tmp_path / "none"), tmp_path)


def test_a_domain_must_be_known_without_a_source_and_be_a_name_with_one(tmp_path):
    with pytest.raises(ConfigError, match="unknown domain 'Mine'"):
        resolve_inputs("Mine", None, tmp_path)
    with pytest.raises(ConfigError, match="a name is 1 to 64 letters"):
        resolve_inputs("../Mine", str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("source", "first", "second"),
    [
        ("http://shop/raw/", "http://shop/raw/", "http://shop/raw/{}/"),
        (
            None,
            "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/{}/",
            "https://jmcauley.ucsd.edu/data/amazon_v2/{}/",
        ),
    ],
)
def test_both_files_are_fetched_from_the_base_or_the_mirrors(
    tmp_path, monkeypatch, source, first, second
):
    asked = []

    def fetch(urls, target, *, progress):
        asked.append((list(urls), target.relative_to(tmp_path).as_posix()))
        return target

    monkeypatch.setattr(inputs, "download", fetch)
    found = resolve_inputs("Office_Products", source, tmp_path)
    assert [path.name for path in found.files] == list(OFFICE)
    assert asked == [
        ([base.format(folder) + file for base in (first, second)], f"Office/{file}")
        for folder, file in zip(("categoryFilesSmall", "metaFiles2"), OFFICE, strict=True)
    ]
