"""What a user can get wrong: one line that helps, nothing half-written, and a way on."""

import gzip
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

DOMAIN = "MiniOffice"


@pytest.fixture
def source(world, tmp_path):
    """A copy of the raw files, to be damaged."""
    return Path(shutil.copytree(world.source(DOMAIN), tmp_path / "source"))


@pytest.fixture
def prepare_copy(source, invoke, tmp_path):
    """Prepare from the copy."""

    def run(*options, source=source):
        where = ("--domain", DOMAIN, "--source", source, "--data-dir", tmp_path / "data")
        return invoke("prepare", *where, "--config", "demo", *options)

    return run


@pytest.fixture
def assert_mended(assert_nothing_half_written, prepare_copy, data_dir, tmp_path, read_tree):
    """After the damage is mended, the same command ends as if nothing had been."""

    def check():
        assert_nothing_half_written(tmp_path)
        assert not (tmp_path / "data/prepared" / DOMAIN).exists()
        assert prepare_copy().exit_code == 0
        own = read_tree(tmp_path / "data/prepared" / DOMAIN)
        assert own == read_tree(data_dir / "prepared" / DOMAIN)

    return check


def test_a_truncated_gzip(assert_fails, source, prepare_copy, assert_mended):
    metadata = source / f"meta_{DOMAIN}.json.gz"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole[: len(whole) // 2])
    where = f"{re.escape(str(metadata))}: the gzip ends early"
    assert_fails(prepare_copy(), 1, where, "Next: delete it and fetch it again")
    metadata.write_bytes(whole)
    assert_mended()


def test_a_csv_with_three_columns(assert_fails, source, prepare_copy, assert_mended, tmp_path):
    ratings = source / f"{DOMAIN}.csv"
    whole = ratings.read_text()
    ratings.write_text("".join(line.rpartition(",")[0] + "\n" for line in whole.splitlines()))
    where = f"{re.escape(str(ratings))}:1: 3 fields instead of 4"
    assert_fails(prepare_copy(), 1, where, "expected item,user,rating,Unix seconds", "Next: ")
    ratings.write_text(whole)
    assert_mended()


def test_a_metadata_line_that_is_not_json(
    assert_fails, source, prepare_copy, assert_mended, tmp_path
):
    metadata = source / f"meta_{DOMAIN}.json.gz"
    whole = metadata.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    lines.insert(2, b'{"asin": "B000000001", "title": \n')
    metadata.write_bytes(gzip.compress(b"".join(lines)))
    where = f"{re.escape(str(metadata))}:3: not JSON"
    assert_fails(prepare_copy(), 1, where, "Next: .*--max-bad-lines N")
    assert prepare_copy("--set", "prepare.max_bad_lines=1").exit_code == 0
    shutil.rmtree(tmp_path / "data/prepared")
    metadata.write_bytes(whole)
    assert_mended()


def test_nothing_is_left_after_the_core(assert_fails, prepare_copy, assert_mended):
    steps = r"read: [\d,]+ interactions; .*50-core: 0 interactions"
    failed = prepare_copy("--set", "prepare.k_core=50")
    assert_fails(failed, 1, f"{DOMAIN}: nothing is left", steps, "N below 50")
    assert_mended()


def test_ratings_and_metadata_of_two_categories(assert_fails, world, source, prepare_copy):
    other = world.source("MiniFood") / "meta_MiniFood.json.gz"
    shutil.copy(other, source / f"meta_{DOMAIN}.json.gz")
    assert_fails(prepare_copy(), 1, "check that ratings and metadata are of one category")


def test_a_missing_source(assert_fails, prepare_copy, tmp_path):
    failed = prepare_copy(source=tmp_path / "nowhere")
    assert_fails(failed, 1, f"nowhere: no raw files of {DOMAIN}", "Next: check the folder")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--domain", "Ofice"], ["unknown domain 'Ofice'", "'Office'", "Next: |Next, "]),
        (["--domain", "../Office"], ["domain '../Office': a name is 1 to 64 letters"]),
        (["--domain", "A", "--set", "prepare.k_cor=3"], ["'prepare.k_cor', did you mean .*k_core"]),
        (["--domain", "A", "--set", "trainr.seed=3"], ["'trainr', did you mean 'trainer'"]),
        (["--domain", "A", "--set", "prepare.k_core=none"], ["prepare.k_core: ", "found 'none'"]),
        (["--domain", "A", "--set", "k_core"], ["--set 'k_core': expected section.key=value"]),
        (["--domain", "A", "--config", "dem"], ["no preset 'dem'", "demo"]),
        (["--domain", "A", "--source", "ftp://host/a"], ["begins with http:// or https://"]),
    ],
)
def test_settings_that_do_not_exist(assert_fails, invoke, tmp_path, arguments, parts):
    assert_fails(invoke("prepare", "--data-dir", tmp_path / "data", *arguments), 2, *parts)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("modality", ["text", "image"])
def test_an_unknown_encoder(assert_fails, prepare, data_dir, tmp_path, read_tree, modality):
    failed = prepare(tmp_path, DOMAIN, f"--{modality}-encoder", "hashin")
    assert_fails(failed, 2, f"no {modality} encoder 'hashin'", "Next: ")
    assert not (tmp_path / "prepared").exists()
    assert prepare(tmp_path).exit_code == 0
    assert read_tree(tmp_path / "prepared") == {
        name: data
        for name, data in read_tree(data_dir / "prepared").items()
        if name.startswith(DOMAIN)
    }


def test_a_folder_that_cannot_be_written(assert_fails, prepare, tmp_path):
    (tmp_path / "file").write_text("")
    failed = prepare(tmp_path / "file")
    assert_fails(failed, 1, f"{tmp_path / 'file'}.*: Not a directory. Next: name a folder")


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_missing_prepared_folder(assert_fails, train, data_dir, tmp_path, verb):
    failed = train(verb, data_dir, tmp_path, "--domain", "MiniArts")
    next_command = f"Next: mmm4rec prepare --domain MiniArts --data-dir {data_dir}"
    assert_fails(failed, 1, "MiniArts is not a prepared domain", re.escape(next_command))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_item_set(assert_fails, invoke, data_dir, trained, tmp_path):
    checkpoint = ("--ckpt", trained["finetune"]["folder"], "--domain", "MiniFood")
    runs = ("--runs-dir", tmp_path / "runs")
    for verb, options in (("evaluate", runs), ("recommend", ("--user", "A"))):
        failed = invoke(verb, *checkpoint, "--data-dir", data_dir, *options)
        assert_fails(failed, 1, r"item set \w+ \(MiniOffice\)", "Next: mmm4rec finetune --ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_none(assert_fails, invoke, data_dir, tmp_path):
    options = ("--domain", DOMAIN, "--data-dir", data_dir)
    for verb in ("finetune", "evaluate", "recommend"):
        failed = invoke(verb, "--ckpt", tmp_path / "run", *options)
        assert_fails(failed, 1, "no checkpoint at .*run: expected", "Next: ")
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    failed = invoke("evaluate", "--ckpt", tmp_path / "a.safetensors", *options)
    assert_fails(failed, 1, "a.safetensors is not a model file of this project")


def test_a_checkpoint_over_other_features(
    assert_fails, prepare, invoke, trained, data_dir, tmp_path, monkeypatch
):
    shutil.copytree(data_dir, tmp_path / "data")
    assert prepare(tmp_path / "data", DOMAIN, "--text-encoder", "none").exit_code == 0
    manifest = tmp_path / "data/prepared" / DOMAIN / "manifest.json"
    text = manifest.read_text()
    key = re.search(r"hashing-\w+", text)[0]
    features = manifest.parent / "features/text"
    (features / key).rename(features / "other-1")
    manifest.write_text(text.replace(key, "other-1"))
    record = features / "other-1/encoder.json"
    record.write_text(record.read_text().replace(key, "other-1"))
    checkpoint = ("--ckpt", trained["finetune"]["folder"], "--domain", DOMAIN)
    failed = invoke("evaluate", *checkpoint, "--data-dir", tmp_path / "data")
    assert_fails(failed, 1, f"features of {key}, .*of other-1", "Next: .*--text-encoder")


def test_a_user_and_an_item_that_are_unknown(assert_fails, invoke, data_dir, trained):
    where = ("--ckpt", trained["finetune"]["folder"], "--domain", DOMAIN, "--data-dir", data_dir)
    asin = pl.read_parquet(data_dir / "prepared" / DOMAIN / "items.parquet")["asin"][0]
    near = asin[:-1] + ("A" if asin[-1] != "A" else "B")
    cases = [
        (("--user", "nobody"), 1, "no user 'nobody' in this domain; a known one is 'A"),
        (("--history", f"{asin},{near}"), 1, f"no item '{near}' .* did you mean '{asin}'"),
        (("--history", ","), 1, "the history is empty"),
        ((), 2, "give either --user NAME or --history"),
        (("--user", "A", "--history", "B"), 2, "give either --user NAME or --history"),
    ]
    for options, code, message in cases:
        assert_fails(invoke("recommend", *where, *options), code, message)
