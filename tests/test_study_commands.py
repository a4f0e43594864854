"""The verbs that ask what a model does, on the miniature Amazon."""

import json

import polars as pl
import pytest

DOMAIN = "MiniOffice"


@pytest.fixture(scope="module")
def trained(train, data_dir, tmp_path_factory):
    """Run folders of a model that does not read the moment of recommending, and one that does."""
    folders = {}
    for query_time in ("none", "now"):
        options = ("--domain", DOMAIN, "--set", f"data.query_time={query_time}", "--json")
        result = train("finetune", data_dir, tmp_path_factory.mktemp("runs"), *options)
        assert result.exit_code == 0, result.stderr
        results = json.loads(result.stdout)
        assert results["protocol"]["query_time"] == query_time
        folders[query_time] = results["folder"]
    return folders


def test_describe_says_what_the_times_are_like(invoke, data_dir):
    arguments = ("--domain", DOMAIN, "--data-dir", data_dir)
    result = invoke("describe", *arguments)
    assert result.exit_code == 0, result.stderr
    assert DOMAIN in result.stdout
    (described,) = json.loads(invoke("describe", *arguments, "--max-len", 5, "--json").stdout)
    table = pl.read_parquet(data_dir / "prepared" / DOMAIN / "interactions.parquet")
    lengths = table["user_id"].value_counts()["count"]
    assert described["interactions"] == table.height
    assert described["longer_share"] == pytest.approx((lengths > 5).mean())


def test_probe_time_measures_other_gaps_and_finds_what_it_has_done(
    invoke, data_dir, trained, tmp_path
):
    arguments = ("--ckpt", trained["none"], "--domain", DOMAIN, "--data-dir", data_dir)
    arguments += ("--runs-dir", tmp_path)
    result = invoke("probe-time", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    probed = json.loads(result.stdout)
    assert "time" in probed["verdict"]
    (written,) = tmp_path.glob(f"probe-time/{DOMAIN}/*/results.json")
    assert json.loads(written.read_text())["verdict"] == probed["verdict"]
    assert probed["verdict"] in invoke("probe-time", *arguments).stdout
    assert list(tmp_path.glob(f"probe-time/{DOMAIN}/*/results.json")) == [written]


def test_truncation_keeps_everything_with_all_items(invoke, data_dir, trained, tmp_path):
    arguments = ("--ckpt", trained["none"], "--domain", DOMAIN, "--data-dir", data_dir)
    arguments += ("--runs-dir", tmp_path, "--last", 1, "--last", 6, "--json")
    result = invoke("truncation", *arguments)
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)["lengths"]) == {"1", "6"}
    assert len(list(tmp_path.glob(f"truncation/{DOMAIN}/*/truncation.png"))) == 1


def test_the_moment_of_recommending_is_given_or_refused(invoke, data_dir, trained, assert_fails):
    asins = pl.read_parquet(data_dir / "prepared" / DOMAIN / "items.parquet")["asin"]
    rest = ("--domain", DOMAIN, "--data-dir", data_dir, "--history", asins[0], "--json")
    lists = {
        now: json.loads(invoke("recommend", "--ckpt", trained["now"], "--now", now, *rest).stdout)
        for now in ("2014-01-01", "2024-01-01")
    }
    scores = [[row["score"] for row in rows] for rows in lists.values()]
    assert scores[0] != scores[1]
    assert invoke("recommend", "--ckpt", trained["now"], *rest).exit_code == 0
    refused = invoke("recommend", "--ckpt", trained["none"], "--now", "2024-01-01", *rest)
    assert_fails(refused, 2, "--now: this model was trained with data.query_time=none")
    options = ("--domain", DOMAIN, "--data-dir", data_dir, "--set", "data.query_time=now")
    asked = invoke("evaluate", "--ckpt", trained["none"], *options)
    assert_fails(asked, 2, "data.query_time is now, but ", "was trained with none")


def test_a_plan_of_tables_begins_nothing(invoke, tmp_path, assert_fails):
    result = invoke("reproduce", "table5", "--world", "mini", "--folder", tmp_path, "--plan")
    assert result.exit_code == 0, result.stderr
    assert " runs: 0 done, 0 to do, " in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert_fails(invoke("reproduce", "table9", "--folder", tmp_path), 2, "no table 'table9'")


def test_a_further_modality_is_read_where_it_is_named(
    invoke, prepare, train, tmp_path, assert_fails
):
    assert prepare(tmp_path / "data").exit_code == 0
    items = pl.read_parquet(tmp_path / "data/prepared" / DOMAIN / "items.parquet")["asin"]
    table = pl.DataFrame(
        {"asin": items, "vector": [[float(i % 3), 1.0] for i in range(len(items))]}
    )
    table.write_parquet(tmp_path / "sound.parquet")
    added = ("--domain", DOMAIN, "--modality", "sound", "--data-dir", tmp_path / "data")
    result = invoke("add-features", *added, "--file", tmp_path / "sound.parquet")
    assert result.exit_code == 0, result.stderr
    assert f"sound: {len(items)} items, width 2" in result.stdout
    three = ("--set", "data.modalities=[text,image,sound]", "--json")
    run = train("finetune", tmp_path / "data", tmp_path / "runs", "--domain", DOMAIN, *three)
    assert run.exit_code == 0, run.stderr
    assert_fails(invoke("add-features", *added, "--file", tmp_path / "none.parquet"), 1, "none")
