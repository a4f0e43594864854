import json
import shutil

import polars as pl
import pytest
import torch

from mmm4rec.errors import ConfigError, DataError
from pipeline.feature_store import read_features
from pipeline.prepared import Names, find_history, load_domain, load_names
from pipeline.sequences import FlatSequences

DOMAIN = "MiniOffice"
MODALITIES = ("text", "image")
AGAIN = r"Next: delete \S+/prepared/MiniOffice and run mmm4rec prepare again"


@pytest.fixture
def copy(data_dir, tmp_path):
    """A prepared folder to be damaged, in a data folder of its own."""
    return shutil.copytree(data_dir / "prepared" / DOMAIN, tmp_path / "prepared" / DOMAIN)


def _edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_arrays_are_what_the_tables_say(data_dir):
    folder = data_dir / "prepared" / DOMAIN
    loaded = load_domain(data_dir, DOMAIN, MODALITIES, {})
    rows = pl.read_parquet(folder / "interactions.parquet")
    assert loaded.sequences.items_N.tolist() == rows["item_id"].to_list()
    assert loaded.sequences.timestamps_N.tolist() == rows["timestamp"].to_list()
    lengths = rows.group_by("user_id", maintain_order=True).len()["len"]
    assert loaded.sequences.offsets_U.diff().tolist() == lengths.to_list()
    assert loaded.sequences.num_users == 60
    catalogue = loaded.catalogue
    assert (catalogue.num_items, catalogue.has_time) == (40, True)
    assert catalogue.fingerprint == loaded.manifest.fingerprint
    assert list(catalogue.features) == list(MODALITIES)
    for made in loaded.manifest.features:
        stored = read_features(
            folder / "features" / made.modality / made.key, 40, catalogue.fingerprint
        )
        features = catalogue.features[made.modality]
        assert features.encoder_key == made.key
        assert features.values_IF.tolist() == stored.values.tolist()
        assert features.present_I.tolist() == stored.present.tolist()
        assert features.present_I.sum() == made.present


def test_streams_come_in_the_order_wanted_and_a_missing_one_is_missing_for_all(data_dir):
    catalogue = load_domain(data_dir, DOMAIN, ("audio", "image", "text"), {}).catalogue
    assert list(catalogue.features) == ["audio", "image", "text"]
    audio = catalogue.features["audio"]
    assert (audio.values_IF.shape, audio.encoder_key) == ((41, 0), None)
    assert not audio.present_I.any()


def test_no_modality_at_all_is_an_error(data_dir):
    with pytest.raises(DataError, match=r"no item has any of the modalities audio\. Next: mmm4rec"):
        load_domain(data_dir, DOMAIN, ("audio",), {})


def test_one_of_several_encoders_must_be_named(copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_text())
    image, text = sorted(manifest["features"], key=lambda made: made["modality"])
    other = text | {"key": "other-1"}
    shutil.copytree(copy / "features/text" / text["key"], copy / "features/text/other-1")
    record = copy / "features/text/other-1/encoder.json"
    record.write_text(record.read_text().replace(text["key"], "other-1"))
    _edit_manifest(copy, features=[image, text, other])
    keys = f"it has {text['key']}, other-1"
    advice = r"Next: --set 'data\.encoders=\{text: KEY\}'"
    with pytest.raises(ConfigError, match=f"text has several encoders; {keys}. {advice}"):
        load_domain(tmp_path, DOMAIN, MODALITIES, {})
    with pytest.raises(ConfigError, match=f"text has no encoder 'no'; {keys}. {advice}"):
        load_domain(tmp_path, DOMAIN, MODALITIES, {"text": "no"})
    loaded = load_domain(tmp_path, DOMAIN, MODALITIES, {"text": "other-1"})
    assert loaded.catalogue.encoder_keys == {"text": "other-1", "image": image["key"]}
    with pytest.raises(ConfigError, match="audio has no encoder 'a'; it has none"):
        load_domain(tmp_path, DOMAIN, ("audio", "text"), {"audio": "a", "text": "other-1"})


def test_features_of_another_item_set_are_an_error(copy, tmp_path):
    _edit_manifest(copy, fingerprint="0" * 16)
    with pytest.raises(DataError, match=r"holds features of 40 items .* has 40 with 0{16}"):
        load_domain(tmp_path, DOMAIN, MODALITIES, {})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda rows: rows.head(-1), "348 rows"),
        (lambda rows: rows.reverse(), "not sorted by user"),
        (lambda rows: rows.with_columns(pl.col("user_id") + 1), "user id 60"),
        (lambda rows: rows.with_columns(pl.col("item_id") + 1), "item id 41"),
        (lambda rows: rows.with_columns(pl.col("item_id") - 1), "item id 0"),
    ],
)
def test_interactions_that_do_not_belong_to_the_manifest(copy, tmp_path, damage, problem):
    path = copy / "interactions.parquet"
    damage(pl.read_parquet(path)).write_parquet(path)
    says = f"{problem}; the manifest says 349 rows of 60 users and 40 items"
    with pytest.raises(DataError, match=rf"interactions\.parquet: {says}\. {AGAIN}"):
        load_domain(tmp_path, DOMAIN, MODALITIES, {})


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "users.parquet"])
def test_a_table_that_cannot_be_read(copy, tmp_path, name, damage):
    path = copy / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:50])
    is_loaded = name == "interactions.parquet"
    load = (lambda *where: load_domain(*where, MODALITIES, {})) if is_loaded else load_names
    with pytest.raises(DataError, match=rf"{name} does not read as Parquet: .*{AGAIN}"):
        load(tmp_path, DOMAIN)


@pytest.mark.parametrize("load", [load_names, lambda *where: load_domain(*where, MODALITIES, {})])
def test_a_folder_that_is_not_prepared(tmp_path, load):
    command = f"Next: mmm4rec prepare --domain Office --data-dir {tmp_path}"
    with pytest.raises(DataError, match=f"prepared/Office is not a prepared domain.*{command}"):
        load(tmp_path, "Office")


def test_names_by_id(data_dir):
    names = load_names(data_dir, DOMAIN)
    items = pl.read_parquet(data_dir / "prepared" / DOMAIN / "items.parquet")
    assert names.asins == ["", *items["asin"]]
    assert (
        names.users
        == pl.read_parquet(data_dir / "prepared" / DOMAIN / "users.parquet")["user"].to_list()
    )
    untitled = items.filter(pl.col("title") == "")
    assert len(untitled) > 0
    for item_id, title, text in items.select("item_id", "title", "text").iter_rows():
        assert names.titles[item_id] == (title or text[:100])
        assert names.titles[item_id].strip()


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet"])
def test_names_of_another_set_are_an_error(copy, tmp_path, name):
    pl.read_parquet(copy / name).head(-1).write_parquet(copy / name)
    message = rf"has items with the fingerprint \w+ and \d+ users, its manifest says .*{AGAIN}"
    with pytest.raises(DataError, match=message):
        load_names(tmp_path, DOMAIN)


SEQUENCES = FlatSequences(
    torch.tensor([1, 2, 3, 2]), torch.tensor([10, 20, 5, 30]), torch.tensor([0, 2, 4])
)
NAMES = Names(["", "B01", "B02", "C77"], ["", "one", "two", "three"], ["ANNA", "BERT"])


def test_the_history_of_a_user():
    assert find_history(SEQUENCES, NAMES, user="BERT", history=None) == ([3, 2], [5, 30])


def test_a_history_given_by_hand_happens_at_the_last_moment_known():
    found = find_history(SEQUENCES, NAMES, user=None, history=" C77, B01,,C77 ")
    assert found == ([3, 1, 3], [30, 30, 30])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"user": "BERTA"}, DataError, "no user 'BERTA' in this domain; did you mean 'BERT'?"),
        ({"user": "xy"}, DataError, "no user 'xy' in this domain; a known one is 'ANNA'"),
        ({"history": "B01,C78"}, DataError, "no item 'C78' in this domain; did you mean 'C77'?"),
        ({"history": "ZZZ"}, DataError, "no item 'ZZZ' in this domain; a known one is 'B01'"),
        ({}, ConfigError, "give either --user NAME or --history ASIN,ASIN"),
        ({"user": "ANNA", "history": "B01"}, ConfigError, "give either --user NAME or"),
    ],
)
def test_a_history_that_is_none(options, error, message):
    wanted = {"user": None, "history": None} | options
    with pytest.raises(error, match=message.replace("?", r"\?")):
        find_history(SEQUENCES, NAMES, **wanted)
