import json
import os
import re
import signal
import subprocess
import sys

import polars as pl
import pytest

import cli
from mmm4rec.run_folder import RESULTS

DOMAIN = "MiniOffice"
TRAINING = "--domain --data-dir --runs-dir --config --set --json"
VERBS = {
    "prepare": "--domain --source --data-dir --text-encoder --image-encoder --no-images --config "
    "--set --json --release --require-image --retry --allow-private-hosts --max-bad-lines --audit "
    "--dry-run",
    "import-official": "--config --out --domain --data-dir --json",
    "export-official": "--out --light --json",
    "pretrain": TRAINING,
    "finetune": f"{TRAINING} --ckpt",
    "evaluate": "--ckpt --domain --data-dir --runs-dir --set --json",
    "recommend": "--ckpt --domain --user --history --top-k --exclude-history --now --data-dir "
    "--json",
    "demo": "--folder --seeds --json",
    "describe": "--domain --max-len --data-dir --json",
    "probe-time": "--ckpt --domain --data-dir --runs-dir --seed --set --json",
    "truncation": "--ckpt --domain --last --data-dir --runs-dir --set --json",
    "add-features": "--domain --modality --file --encoder --data-dir --json",
    "reproduce": "--world --seeds --domain --folder --plan --jobs --set",
}
METRICS = {f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in (10, 20, 50)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pretrained(train, data_dir, runs):
    domains = ("--domain", "MiniFood", "--domain", "MiniHome")
    return train("pretrain", data_dir, runs, *domains, "--json")


@pytest.fixture(scope="module")
def finetuned(train, data_dir, runs, pretrained):
    folder = json.loads(pretrained.stdout)["folder"]
    return train("finetune", data_dir, runs, "--domain", DOMAIN, "--ckpt", folder, "--json")


@pytest.fixture(scope="module")
def checkpoint(finetuned, data_dir):
    """Options that name the fine-tuned model and its data."""
    folder = json.loads(finetuned.stdout)["folder"]
    return ("--ckpt", folder, "--domain", DOMAIN, "--data-dir", data_dir)


def test_without_arguments_it_helps(invoke):
    shown = invoke().output
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(invoke, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert set(VERBS[verb].split()) <= set(re.findall(r"--[a-z-]+", plain))
    described = cli.app.registered_commands
    assert {command.name or command.callback.__name__ for command in described} >= {verb}


def test_a_dry_run_says_what_would_be_fetched_and_writes_nothing(prepare, tmp_path):
    result = prepare(tmp_path / "data", DOMAIN, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == DOMAIN
    assert "  to fetch         0 bytes in 0 requests; " in result.stdout
    as_json = prepare(tmp_path / "data", DOMAIN, "--dry-run", "--json")
    (plan,) = json.loads(as_json.stdout)
    assert (plan["domain"], plan["bytes_to_fetch"]) == (DOMAIN, 0)
    assert not (tmp_path / "data").exists()


def test_the_named_options_of_prepare_reach_the_settings(prepare, assert_fails, tmp_path):
    options = ("--require-image", "--max-bad-lines", "7", "--audit", "--retry", "temporary")
    result = prepare(tmp_path, DOMAIN, *options, "--set", "prepare.k_core=2")
    assert result.exit_code == 0, result.stderr
    assert "text features: audit of " in result.stdout
    manifest = json.loads((tmp_path / "prepared" / DOMAIN / "manifest.json").read_text())
    assert manifest["parameters"]["prepare"]["require_image"] is True
    assert manifest["parameters"]["prepare"]["max_bad_lines"] == 7
    assert manifest["counts"][-1]["step"] == "2-core again"
    assert_fails(
        prepare(tmp_path, DOMAIN, "--retry", "all"), 2, "--retry all: allowed is temporary"
    )
    assert_fails(prepare(tmp_path, DOMAIN, "--release", "2014"), 2, "prepare.release", "2014")


def test_prepare_shows_the_card(prepare, world, tmp_path):
    result = prepare(tmp_path)
    ledger = world.domains[DOMAIN].ledger
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "tables ..."
    core = next(line.split() for line in lines if line.startswith("  5-core"))
    assert core[1:] == [
        str(ledger[name]) for name in ("core_users", "core_items", "core_interactions")
    ]
    assert any(line.startswith("  images") and "30 of 40 items (75.0%)" in line for line in lines)
    assert result.stderr == ""


def test_prepare_as_json_prints_the_cards_and_nothing_else(invoke, world, tmp_path):
    domains = ("--domain", DOMAIN, "--domain", "MiniFood", "--source", world.folder)
    options = ("--config", "demo", "--no-images", "--data-dir", tmp_path, "--json")
    result = invoke("prepare", *domains, *options)
    cards = json.loads(result.stdout)
    assert [card["domain"] for card in cards] == [DOMAIN, "MiniFood"]
    assert [card["counts"][-1]["items"] for card in cards] == [40, 45]
    assert "tables ..." in result.stderr


def test_options_win_over_set_and_set_over_the_preset(prepare, tmp_path):
    options = ("--set", "features.text=none", "--text-encoder", "hashing")
    options += ("--set", "features.image=none", "--set", "images.enabled=true", "--no-images")
    assert prepare(tmp_path, DOMAIN, *options).exit_code == 0
    manifest = json.loads((tmp_path / "prepared" / DOMAIN / "manifest.json").read_text())
    features, images = (manifest["parameters"][name] for name in ("features", "images"))
    assert (features["text"], features["image"], images["enabled"]) == ("hashing", "none", False)
    assert images["connections"] == 32  # of the preset


def test_pretraining_joins_domains(pretrained, runs):
    results = json.loads(pretrained.stdout)
    assert results["domains"] == ["MiniFood", "MiniHome"]
    assert results["epochs"] == 3
    assert "test" not in results
    assert (runs / "pretrain" / "MiniFood+MiniHome").is_dir()
    assert pretrained.stderr.count("epoch ") == 3


def test_fine_tuning_says_what_moved(finetuned, pretrained, runs):
    results = json.loads(finetuned.stdout)
    assert results["from_checkpoint"].startswith(json.loads(pretrained.stdout)["folder"])
    assert results["transfer"]["moved"]
    assert all("item_bias" in name for name in results["transfer"]["reset"])
    assert f"moved {len(results['transfer']['moved'])} weights" in finetuned.stderr
    assert set(results["test"]) == METRICS
    stored = json.loads((runs / "finetune" / DOMAIN).glob(f"*/{RESULTS}").__next__().read_text())
    assert {key: results[key] for key in stored} == stored


def test_fine_tuning_from_scratch_prints_the_test(train, data_dir, tmp_path):
    result = train("finetune", data_dir, tmp_path, "--domain", DOMAIN)
    (stored,) = (json.loads(path.read_text()) for path in tmp_path.rglob(RESULTS))
    assert stored["from_checkpoint"] is stored["transfer"] is None
    printed = dict(re.findall(r"^test (\S+) +([\d.]+)  \[", result.stdout, re.MULTILINE))
    assert printed == {name: f"{m['value']:.4f}" for name, m in stored["test"].items()}
    assert set(printed) == METRICS
    assert f"best epoch {stored['best_epoch']} of 3, val/ndcg@10" in result.stdout
    assert result.stderr == ""


def test_a_checkpoint_brings_its_architecture(invoke, data_dir, tmp_path, pretrained):
    """Without any --set, the model is that of the checkpoint and not that of the preset."""
    folder = json.loads(pretrained.stdout)["folder"]
    options = ("--domain", DOMAIN, "--ckpt", folder, "--data-dir", data_dir)
    quick = ("--set", "trainer.max_epochs=1", "--set", "evaluation.bootstrap_samples=100")
    result = invoke("finetune", *options, *quick, "--runs-dir", tmp_path)
    assert result.exit_code == 0
    text = next(tmp_path.rglob("config.yaml")).read_text()
    assert "d_model: 16" in text
    assert "use_item_bias: true" in text  # pre-training has it off


def test_evaluation_finds_the_results_of_the_run_again(invoke, checkpoint, finetuned, tmp_path):
    expected = json.loads(finetuned.stdout)["test"]
    arguments = ("evaluate", *checkpoint, "--runs-dir", tmp_path)
    assert json.loads(invoke(*arguments, "--json").stdout)["test"] == expected
    printed = invoke(*arguments).stdout
    assert f"test ndcg@10    {expected['ndcg@10']['value']:.4f}  [" in printed
    assert len(list((tmp_path / "evaluate" / DOMAIN).iterdir())) == 2


@pytest.fixture(scope="module")
def tables(data_dir):
    folder = data_dir / "prepared" / DOMAIN
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("items", "users")} | {
        "interactions": pl.read_parquet(folder / "interactions.parquet")
    }


def _history(tables, user_id):
    rows = tables["interactions"].filter(pl.col("user_id") == user_id)
    asin = dict(tables["items"].select("item_id", "asin").iter_rows())
    return [asin[item] for item in rows["item_id"]]


def test_recommendations_for_a_user(invoke, checkpoint, tables):
    user = tables["users"]["user"][7]
    title = dict(tables["items"].select("asin", "title").iter_rows())
    arguments = ("recommend", *checkpoint, "--user", user)
    rows = json.loads(invoke(*arguments, "--json").stdout)
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert len({row["asin"] for row in rows}) == 10
    assert all(row["title"] == title[row["asin"]] for row in rows if title[row["asin"]])
    assert all(row["title"].strip() for row in rows)
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    first, *lines = invoke(*arguments).stdout.splitlines()
    assert first.startswith(f"after {len(_history(tables, 7))} items, the last: ")
    assert [line.split()[:3] for line in lines] == [
        [str(row["rank"]), f"{row['score']:.3f}", row["asin"]] for row in rows
    ]


def test_what_was_bought_can_be_left_out(invoke, checkpoint, tables):
    arguments = ("recommend", *checkpoint, "--user", tables["users"]["user"][7], "--json")
    every = [row["asin"] for row in json.loads(invoke(*arguments, "--top-k", "99").stdout)]
    assert sorted(every) == sorted(tables["items"]["asin"])
    new = json.loads(invoke(*arguments, "--top-k", "99", "--exclude-history").stdout)
    bought = set(_history(tables, 7))
    assert [row["asin"] for row in new] == [asin for asin in every if asin not in bought]


def test_recommendations_for_a_history_given_by_hand(invoke, checkpoint, tables):
    asins = tables["items"]["asin"]
    arguments = ("recommend", *checkpoint, "--top-k", "3", "--history")
    given = json.loads(invoke(*arguments, f"{asins[3]}, {asins[5]}", "--json").stdout)
    turned = json.loads(invoke(*arguments, f"{asins[5]},{asins[3]}", "--json").stdout)
    assert len(given) == len(turned) == 3
    assert given != turned
    assert invoke(*arguments, asins[3]).stdout.startswith("after 1 items, the last: ")


def test_full_names_of_domains_stand_for_short_ones(invoke, prepare, world, train, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in world.source(DOMAIN).iterdir():
        (source / path.name.replace(DOMAIN, "Office_Products")).write_bytes(path.read_bytes())
    arguments = ("--domain", "Office_Products", "--source", source, "--no-images")
    data = ("--data-dir", tmp_path / "data")
    assert invoke("prepare", *arguments, *data, "--config", "demo").exit_code == 0
    assert (tmp_path / "data/prepared/Office").is_dir()
    results = [
        train("finetune", tmp_path / "data", tmp_path / name, "--domain", name, "--json")
        for name in ("Office", "Office_Products")
    ]
    tests = [json.loads(result.stdout)["test"] for result in results]
    assert tests[0] == tests[1]
    run = json.loads(results[0].stdout)["folder"]
    names = ("--ckpt", run, "--domain", "Office_Products", *data)
    assert invoke("evaluate", *names, "--runs-dir", tmp_path / "runs").exit_code == 0
    item = pl.read_parquet(tmp_path / "data/prepared/Office/items.parquet")["asin"][0]
    assert invoke("recommend", *names, "--history", item).exit_code == 0


def test_an_error_that_nobody_foresaw_keeps_its_traceback(prepare, monkeypatch, tmp_path):
    def fail(*_):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr("pipeline.build.data_card", fail)
    assert isinstance(prepare(tmp_path).exception, ZeroDivisionError)


@pytest.mark.slow
def test_a_real_interrupt_ends_the_process_and_the_next_run_carries_on(train, data_dir, tmp_path):
    whole = json.loads(
        train("finetune", data_dir, tmp_path / "whole", "--domain", DOMAIN, "--json").stdout
    )
    config = tmp_path / "whole" / "finetune" / DOMAIN
    preset = next(config.glob("*/config.yaml"))
    command = [sys.executable, "-u", "-m", "mmm4rec", "finetune", "--domain", DOMAIN]
    command += ["--config", preset, "--runs-dir", tmp_path / "cut"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1 "):
                process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert (process.returncode, errors) == (
        130,
        "error: interrupted; the same command carries on from here\n",
    )
    again = subprocess.run(
        [*command, "--json"], env=environment, text=True, capture_output=True, check=True
    )
    assert "carrying on " in again.stderr
    assert json.loads(again.stdout)["test"] == whole["test"]
