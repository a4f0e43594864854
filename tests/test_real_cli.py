"""The verbs on real data: the folder named by MMM4REC_REAL_DATA."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

REAL_DATA = os.environ.get("MMM4REC_REAL_DATA")

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(REAL_DATA is None, reason="MMM4REC_REAL_DATA names no folder"),
]
SMALL = (
    "model={d_model: 64, d_feed_forward: 64, d_state: 16, head_dim: 32, num_groups: 4}",
    "trainer={accelerator: cpu, devices: 1}",
    "data.batch_size=256",
    "optimizer.lr=0.001",
)
MAGAZINES, SCIENTIFIC = "Magazine_Subscriptions", "Scientific"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def finetune(invoke, folder):
    settings = [part for setting in SMALL for part in ("--set", setting)]

    def run(domain, epochs):
        where = ("--domain", domain, "--data-dir", folder / "data", "--runs-dir", folder / "runs")
        epochs_set = ("--set", f"trainer.max_epochs={epochs}")
        return invoke("finetune", *where, *settings, *epochs_set, "--json")

    return run


def _counts(result):
    (card,) = json.loads(result.stdout)
    return card, [(c["step"], c["users"], c["items"], c["interactions"]) for c in card["counts"]]


@pytest.fixture(scope="module")
def magazines(invoke, folder):
    """What the preparation said."""
    source = Path(REAL_DATA) / "amazon2018" / MAGAZINES
    where = ("--domain", MAGAZINES, "--source", source, "--data-dir", folder / "data")
    return invoke("prepare", *where, "--text-encoder", "minilm", "--no-images", "--json")


def test_magazines_are_prepared(magazines, folder):
    assert magazines.exit_code == 0, magazines.stderr
    card, counts = _counts(magazines)
    assert counts[-1] == ("5-core", 284, 126, 1_950)
    assert [interactions for *_, interactions in counts[:-1]] == [89_689, 88_468, 84_139]
    assert card["images"]["with_url"] == 111
    items = pl.read_parquet(folder / "data/prepared" / MAGAZINES / "items.parquet")
    assert (items["image_status"] == "missing").sum() == 126 - 111
    assert card["published"]["rows"][0]["found"] == card["published"]["rows"][0]["published"]
    assert card["published"]["first_difference"] is None
    assert card["ambiguous_order_share"] == 0.5563


def test_magazines_whose_picture_host_is_silent_lose_nothing(
    invoke, folder, tmp_path, assert_fails
):
    """The addresses are Amazon's: where there is no network the stage ends and says so."""
    source = Path(REAL_DATA) / "amazon2018" / MAGAZINES
    where = ("--domain", MAGAZINES, "--source", source, "--data-dir", tmp_path)
    proxy = ("--set", "images.host_failures=2", "--text-encoder", "hashing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        result = invoke("prepare", *where, "--image-encoder", "pixels", *proxy)
    assert_fails(result, 1, "does not answer|not answer|silent", "--no-images")
    again = invoke("prepare", *where, "--image-encoder", "pixels", "--no-images", *proxy[2:])
    assert again.exit_code == 0, again.stderr


def test_magazines_are_learned_evaluated_and_recommended(magazines, finetune, invoke, folder):
    tuned = finetune(MAGAZINES, 2)
    assert tuned.exit_code == 0, tuned.stderr
    results = json.loads(tuned.stdout)
    assert (results["protocol"]["users"], results["protocol"]["items"]) == (284, 126)
    assert 0.05 < results["test"]["recall@10"]["value"] < 1
    model = ("--ckpt", results["folder"], "--domain", MAGAZINES, "--data-dir", folder / "data")
    evaluated = invoke("evaluate", *model, "--runs-dir", folder / "runs", "--json")
    assert json.loads(evaluated.stdout)["test"] == results["test"]
    user = pl.read_parquet(folder / "data/prepared" / MAGAZINES / "users.parquet")["user"][0]
    rows = json.loads(invoke("recommend", *model, "--user", user, "--json").stdout)
    assert len({row["asin"] for row in rows}) == 10
    assert all(row["title"].strip() for row in rows)
    assert not any("<" in row["title"] for row in rows)


def test_scientific_has_no_times_and_is_learned_without(invoke, finetune, folder):
    where = ("--source", Path(REAL_DATA) / "scientific", "--data-dir", folder / "data")
    encoders = ("--text-encoder", "hashing", "--json")
    prepared = invoke("prepare", "--domain", SCIENTIFIC, *where, *encoders)
    assert prepared.exit_code == 0, prepared.stderr
    card, counts = _counts(prepared)
    assert counts == [("read", 8_442, 4_385, 59_384)]
    assert (card["time"], card["images"]["ok"]) == (None, 0)
    assert "image features: none, no item has image" in prepared.stderr
    again = invoke("prepare", "--domain", SCIENTIFIC, *where, *encoders[:-1])
    assert "no timestamps: training turns time off" in again.stdout
    tuned = finetune(SCIENTIFIC, 1)
    assert "Scientific has no timestamps: time is off (model.use_time=false)" in tuned.stderr
    results = json.loads(tuned.stdout)
    assert (results["protocol"]["users"], results["protocol"]["items"]) == (8_442, 4_385)
    assert results["test"]["recall@10"]["value"] > 10 * 10 / 4_385
