import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.errors import ConfigError, DataError
from pipeline.added_features import add_feature_column
from pipeline.prepared import load_domain, load_names
from pipeline.schema import read_manifest

DOMAIN = "MiniOffice"
DOUBLES = pa.list_(pa.float64())


@pytest.fixture
def folder(data_dir, tmp_path):
    """A prepared folder to be written to, in the data folder `tmp_path`."""
    return shutil.copytree(data_dir / "prepared" / DOMAIN, tmp_path / "prepared" / DOMAIN)


@pytest.fixture
def asins(folder, tmp_path):
    return load_names(tmp_path, DOMAIN).asins[1:]


@pytest.fixture
def add(folder, tmp_path):
    """Add vectors by item name."""

    def run(vectors, kind=DOUBLES, modality="sound", **options):
        file = tmp_path / "vectors.parquet"
        names, values = zip(*vectors, strict=True) if vectors else ((), ())
        column = pa.array(values, DOUBLES).cast(kind)
        pq.write_table(pa.table({"asin": pa.array(names, pa.string()), "vector": column}), file)
        return add_feature_column(
            tmp_path, DOMAIN, modality, file, echo=lambda line: None, **options
        )

    return run


def _load(data_dir, *modalities):
    return load_domain(data_dir, DOMAIN, modalities, {}).catalogue.features


@pytest.mark.parametrize(
    "kind",
    [
        DOUBLES,
        pa.large_list(pa.float32()),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float32(), 2),
    ],
)
def test_vectors_stand_at_their_items_and_the_rest_is_missing(add, asins, tmp_path, kind):
    given = [(asins[4], [1.5, -2]), ("unknown", [7, 7]), (asins[0], [3, 4]), (asins[7], None)]
    before = _load(tmp_path, "text", "image")
    made = add([*given, (asins[9], [0, 0])], kind)
    assert (made.modality, made.width, made.present) == ("sound", 2, 2)
    features = _load(tmp_path, "text", "image", "sound")
    sound = features["sound"]
    assert sound.present_I.nonzero().flatten().tolist() == [1, 5]
    assert sound.values_IF[[1, 5]].tolist() == [[3, 4], [1.5, -2]]
    assert sound.values_IF.sum() == 6.5
    assert sound.encoder_key == made.key
    for name, old in before.items():
        assert features[name].values_IF.equal(old.values_IF)


def test_the_key_names_the_content_or_an_encoder_that_is_said_to_be_one(add, asins):
    one, other = add([(asins[0], [1, 2])]), add([(asins[0], [1, 3])])
    assert one.key.startswith("sound-")
    assert one.key != other.key
    assert add([(asins[0], [1, 2])], encoder="clap.v2").key == "clap.v2-2"


def test_the_same_encoder_again_takes_the_place_of_the_old_vectors(add, asins, folder, tmp_path):
    add([(asins[0], [1, 2])], encoder="clap")
    add([(asins[1], [3, 4])], encoder="clap")
    sets = read_manifest(folder).features
    assert [(one.modality, one.key) for one in sets][-1] == ("sound", "clap-2")
    assert len(sets) == 3
    sound = _load(tmp_path, "sound")["sound"]
    assert sound.present_I.nonzero().flatten().tolist() == [2]
    assert sound.values_IF[2].tolist() == [3, 4]


def test_prepare_keeps_what_was_added(prepare, tmp_path):
    assert prepare(tmp_path).exit_code == 0
    asin = load_names(tmp_path, DOMAIN).asins[3]
    table = pa.table({"asin": [asin], "sound": [[1.0]]})
    pq.write_table(table, tmp_path / "f.parquet")
    add_feature_column(tmp_path, DOMAIN, "sound", tmp_path / "f.parquet", echo=lambda line: None)
    assert prepare(tmp_path).exit_code == 0
    assert _load(tmp_path, "text", "sound")["sound"].present_I.nonzero().tolist() == [[3]]


def test_more_rows_than_are_read_at_once(add, asins, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.added_features.ROWS_AT_ONCE", 3)
    made = add([(asins[0], None), *((asin, [k, 1]) for k, asin in enumerate(asins[1:], 2))])
    assert made.present == len(asins) - 1
    values = _load(tmp_path, "sound")["sound"].values_IF
    assert values[2:, 0].tolist() == list(range(2, len(asins) + 1))
    again = [(asin, [1, 1]) for asin in asins[:5]]
    with pytest.raises(DataError, match=f"the item {asins[0]} is there twice"):
        add([*again, again[0]])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([("A", [1, 2]), ("A", [1, 2])], "the item A is there twice; one row each is allowed"),
        ([(None, [1, 2])], "a row has no asin; every vector needs its item's name"),
        ([("A", [1, 2]), ("B", [1])], r"the vector of B has 1 values, expected 2, as the first"),
        ([("A", [])], "the vector of A has 0 values, expected 0, as the first one has, and 1 to"),
        ([("A", [1, float("nan")])], r"the vector of A has a value that is not finite in float16"),
        ([("A", None), ("B", [float("inf")])], r"the vector of B has a value that is not finite"),
        ([("A", [None, 1.0])], r"the vector of A has a value that is not finite"),
        ([("A", [70_000.0])], r"the vector of A .* \(limit 65504\)\. Next: leave the item out"),
        ([("A", [1e300])], r"the vector of A has a value that is not finite"),
        ([("A", [1, 2])], r"no vector of any of the domain's 40 items, .* others, such as A\."),
        ([], "no vector of any of the domain's 40 items, .* such as no row at all"),
    ],
)
def test_vectors_that_are_refused(add, folder, vectors, message, read_tree):
    before = read_tree(folder)
    with pytest.raises(DataError, match=message):
        add(vectors)
    assert read_tree(folder) == before


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"asin": ["A"]}, r"found asin \(string\)"),
        ({"item": ["A"], "x": [[1.0]]}, r"found item \(string\), x \(list"),
        ({"asin": [1], "x": [[1.0]]}, r"found asin \(int64\), x"),
        ({"asin": ["A"], "x": [[1]]}, r"x \(list<\w+: int64>\)"),
        ({"asin": ["A"], "x": [1.0]}, r"x \(double\)"),
        ({"asin": ["A"], "x": [[1.0]], "y": [[1.0]]}, r"y \(list"),
    ],
)
def test_columns_that_are_refused(folder, tmp_path, table, found):
    pq.write_table(pa.table(table), tmp_path / "f.parquet")
    message = rf"f\.parquet: expected a column asin of text and one column of lists of.*{found}"
    with pytest.raises(DataError, match=message):
        add_feature_column(tmp_path, DOMAIN, "sound", tmp_path / "f.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_files_that_do_not_read(folder, tmp_path, content):
    if content is not None:
        (tmp_path / "f.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"f\.parquet does not read as Parquet: .*; expected a col"):
        add_feature_column(tmp_path, DOMAIN, "sound", tmp_path / "f.parquet")


@pytest.mark.parametrize("modality", ["Sound", "../x", "a-b", "", "keys", "1a", "a b"])
def test_modalities_that_cannot_be_called_so(add, asins, modality):
    with pytest.raises(ConfigError, match=r"cannot name a part of a model.* Next: choose another"):
        add([(asins[0], [1.0])], modality=modality)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_what_prepare_makes_is_not_added(add, asins, modality):
    with pytest.raises(ConfigError, match=f"modality {modality} are made by mmm4rec prepare"):
        add([(asins[0], [1.0])], modality=modality)


@pytest.mark.parametrize("encoder", ["", "A", "a--b", "../a"])
def test_encoders_that_cannot_be_called_so(add, asins, encoder):
    with pytest.raises(ConfigError, match="a name has small letters and digits"):
        add([(asins[0], [1.0])], encoder=encoder)


def test_a_domain_that_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match="is not a prepared domain"):
        add_feature_column(tmp_path, "Nowhere", "sound", tmp_path / "f.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_folder_as_it_was(add, asins, folder, monkeypatch, read_tree):
    before = read_tree(folder)
    monkeypatch.setattr("pipeline.added_features.shutil.move", _fail)
    with pytest.raises(OSError, match="disk full"):
        add([(asins[0], [1.0])])
    assert read_tree(folder) == before
    assert json.loads((folder / "manifest.json").read_text())["domain"] == DOMAIN


def _fail(*_):
    raise OSError("disk full")
