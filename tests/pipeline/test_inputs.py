import re

import pytest

from mmm4rec.errors import ConfigError, DataError
from pipeline import inputs
from pipeline.domains import find_domain
from pipeline.download import UnavailableError
from pipeline.download_plan import PlannedFile
from pipeline.inputs import AmazonFiles, plan_inputs, resolve_inputs

OFFICE = ("Office_Products.csv", "meta_Office_Products.json.gz")
OFFICE_2023 = ("Office_Products.jsonl.gz", "meta_Office_Products.jsonl.gz")
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
HUB = "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main"
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
    "names",
    [
        OFFICE_2023,
        ("Office_Products.csv", "meta_Office_Products.jsonl"),
        ("Office_Products.csv.gz", "meta_Office_Products.jsonl.gz"),
        ("Office.jsonl", "meta_Office.jsonl"),
        ("Office-2023.jsonl", "meta_Office-2023.jsonl"),
    ],
)
@pytest.mark.parametrize("place", [".", "Office_Products", "Office-2023"])
def test_files_of_release_2023_in_a_folder_are_used_in_place(tmp_path, names, place):
    _touch(tmp_path / place, *names)
    for domain in ("Office", "Office_Products", "Office-2023"):
        found = resolve_inputs(domain, str(tmp_path), tmp_path / "raw", release="2023")
        assert found == AmazonFiles(*(tmp_path / place / name for name in names), "2023")
    assert found.source_format == "amazon2023"


def test_files_of_one_release_are_not_taken_for_the_other(tmp_path):
    _touch(tmp_path, *OFFICE)
    assert resolve_inputs("Office", str(tmp_path), tmp_path).source_format == "amazon2018"
    with pytest.raises(DataError, match=r"no raw files of Office-2023 there.*and --release"):
        resolve_inputs("Office", str(tmp_path), tmp_path, release="2023")
    _touch(tmp_path / "x", *OFFICE_2023)
    with pytest.raises(DataError, match="no raw files of Office there"):
        resolve_inputs("Office", str(tmp_path / "x"), tmp_path)


@pytest.fixture
def web(monkeypatch):
    """Addresses that were fetched, and those that nobody serves; every file has 100 bytes."""
    asked, dead = [], set()

    def plan(editions, folder):
        for file in editions:
            if not dead.intersection(file.urls):
                return PlannedFile(file.name, file.urls, folder / file.name, 100, is_present=False)
        return PlannedFile(editions[0].name, editions[0].urls, folder, None, is_present=False)

    def fetch(urls, target, *, sha256, progress):
        asked.append((list(urls), target, sha256))
        if dead.intersection(urls):
            raise UnavailableError(target.name, [f"{urls[0]}: HTTP 404"])
        return target

    monkeypatch.setattr(inputs, "plan_download", plan)
    monkeypatch.setattr(inputs, "download", fetch)
    return asked, dead


def _fetched(web):
    return [(urls, target.name) for urls, target, _ in web[0]]


def test_both_files_are_fetched_from_the_mirrors(tmp_path, web):
    found = resolve_inputs("Office_Products", None, tmp_path)
    assert found == AmazonFiles(*(tmp_path / "Office" / name for name in OFFICE))
    bases = (f"{UCSD}/amazon_v2", "https://jmcauley.ucsd.edu/data/amazon_v2")
    assert _fetched(web) == [
        ([f"{base}/{folder}/{name}" for base in bases], name)
        for folder, name in zip(("categoryFilesSmall", "metaFiles2"), OFFICE, strict=True)
    ]
    hashes = [sha256 for *_, sha256 in web[0]]
    assert hashes == [find_domain("Office").ratings_sha256, None]


def test_both_files_are_fetched_from_a_base_whatever_their_hash(tmp_path, web):
    resolve_inputs("Office", "http://shop/raw/", tmp_path)
    assert _fetched(web) == [
        ([f"http://shop/raw/{name}", f"http://shop/raw/{folder}/{name}"], name)
        for folder, name in zip(("categoryFilesSmall", "metaFiles2"), OFFICE, strict=True)
    ]
    assert [sha256 for *_, sha256 in web[0]] == [None, None]


def test_release_2023_is_fetched_compressed_else_from_the_hub(tmp_path, web):
    found = resolve_inputs("Office", None, tmp_path, release="2023")
    assert found.files == tuple(tmp_path / "Office-2023" / name for name in OFFICE_2023)
    first, second = (
        f"{UCSD}/amazon_2023/raw/review_categories/Office_Products.jsonl.gz",
        f"{UCSD}/amazon_2023/raw/meta_categories/meta_Office_Products.jsonl.gz",
    )
    assert _fetched(web) == [([first], OFFICE_2023[0]), ([second], OFFICE_2023[1])]
    web[0].clear()
    web[1].add(second)
    found = resolve_inputs("Office", None, tmp_path, release="2023")
    assert found.metadata.name == "meta_Office_Products.jsonl"
    other = f"{HUB}/raw/meta_categories/meta_Office_Products.jsonl"
    assert _fetched(web)[1:] == [([other], "meta_Office_Products.jsonl")]


def test_all_editions_are_tried_and_named_before_it_is_an_error(tmp_path, web):
    dead = (f"{UCSD}/amazon_2023/raw/review_categories/Books.jsonl.gz",)
    dead += (f"{HUB}/raw/review_categories/Books.jsonl",)
    web[1].update(dead)
    message = f"cannot fetch Books.jsonl.gz: {dead[0]}: HTTP 404; {dead[1]}: HTTP 404. Next: try"
    with pytest.raises(UnavailableError, match=message):
        resolve_inputs("Books", None, tmp_path, release="2023")


def test_the_disk_must_hold_both_files_before_the_first_is_fetched(tmp_path, web, monkeypatch):
    monkeypatch.setattr("pipeline.download.free_bytes", lambda folder: 2**28 + 199)
    names = " and ".join(OFFICE)
    with pytest.raises(
        DataError, match=f"Office: fetching {names} needs 200 bytes more .* 268,435,655 are"
    ):
        resolve_inputs("Office", None, tmp_path)
    assert web[0] == []


def test_a_plan_names_what_would_be_fetched(tmp_path, web):
    plan = plan_inputs("Office", None, tmp_path, "2023")
    assert [(file.name, file.bytes, file.is_present) for file in plan] == [
        (name, 100, False) for name in OFFICE_2023
    ]
    assert {file.target.parent for file in plan} == {tmp_path / "Office-2023"}
    assert web[0] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [OFFICE, ATOMIC])
def test_a_plan_of_files_in_a_folder_needs_no_server(tmp_path, names):
    _touch(tmp_path, *names)
    plan = plan_inputs("Office", str(tmp_path), tmp_path / "raw")
    assert {file.name for file in plan} == set(names)
    assert all(file.is_present and file.bytes == 0 for file in plan)


def test_a_plan_has_the_errors_of_the_files_themselves(tmp_path):
    with pytest.raises(ConfigError, match="unknown domain 'Mine' of release 2018"):
        plan_inputs("Mine", None, tmp_path)
    with pytest.raises(DataError, match="no raw files of Mine there"):
        plan_inputs("Mine", str(tmp_path), tmp_path)
