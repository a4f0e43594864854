import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.presets import find_preset
from mmm4rec.errors import ConfigError, DataError
from mmm4rec.settings import load_config
from pipeline.build import prepare_domain
from pipeline.feature_store import read_features
from pipeline.schema import Count, prepared_dir, read_manifest
from pipeline.synthetic.shop import WITHOUT_IMAGE

DOMAIN = "MiniOffice"
STAGES = ("tables", "images", "text features", "image features")


@pytest.fixture
def build(world, tmp_path):
    """Prepare a domain; returns the manifest, what was said, and where."""

    def run(*overrides, name="data", source=None, domain=DOMAIN, **options):
        data_dir = tmp_path / name
        settings = load_config(find_preset("demo"), [*overrides, f"data.data_dir={data_dir}"])
        lines = []
        source = str(source or world.source(domain))
        manifest = prepare_domain(domain, settings, source=source, echo=lines.append, **options)
        return manifest, lines, prepared_dir(data_dir, domain)

    return run


def _redone(lines):
    return [stage for stage in STAGES if f"{stage} ..." in lines]


def _unchanged(lines):
    return [stage for stage in STAGES if f"{stage}: unchanged" in lines]


def test_the_planted_counts_come_out(world, build):
    ledger = world.domains[DOMAIN].ledger
    manifest, lines, folder = build()
    read, unique, joined, core = manifest.counts
    assert [count.step for count in manifest.counts] == [
        "read",
        "exact duplicates removed",
        "with metadata",
        "5-core",
    ]
    assert read.interactions == ledger["rows"]
    assert unique.interactions == ledger["rows"] - ledger["duplicate_rows"]
    assert joined.items == ledger["core_items"] + ledger["items_below_core"]
    assert (core.users, core.items, core.interactions) == (
        ledger["core_users"],
        ledger["core_items"],
        ledger["core_interactions"],
    )
    assert _redone(lines) == list(STAGES)
    assert read_manifest(folder) == manifest


def test_sequences_are_those_that_were_drawn(world, build):
    domain = world.domains[DOMAIN]
    _, _, folder = build()
    asin = dict(pl.read_parquet(folder / "items.parquet").select("item_id", "asin").iter_rows())
    rows = pl.read_parquet(folder / "interactions.parquet")
    found = {
        tuple(asin[item] for item in group["item_id"]): (group["timestamp"] // 86_400).to_list()
        for _, group in rows.group_by("user_id", maintain_order=True)
    }
    expected = {
        tuple(domain.catalogue.core[item] for item in items): days.tolist()
        for items, days in zip(domain.sequences, domain.days, strict=True)
    }
    assert found == expected


def test_an_item_has_an_image_where_one_was_planted(world, build):
    catalogue = world.domains[DOMAIN].catalogue
    manifest, _, folder = build()
    items = pl.read_parquet(folder / "items.parquet")
    fate = dict(zip(catalogue.core, catalogue.fates, strict=True))
    expected = [fate[asin] not in WITHOUT_IMAGE for asin in items["asin"]]
    assert (items["image_status"] == "ok").to_list() == expected
    errors = ("not_found", "gone", "truncated", "not_an_image")
    named = {**dict.fromkeys(errors), "no_url": "missing"}
    for asin, status in items.select("asin", "image_status").iter_rows():
        assert status == ((named[fate[asin]] or fate[asin]) if fate[asin] in named else "ok")
    key = {made.modality: made for made in manifest.features}
    image = read_features(folder / "features/image" / key["image"].key, 40, manifest.fingerprint)
    assert image.present[1:].tolist() == expected
    assert key["image"].present == sum(expected) == 40 - catalogue.ledger["items_without_image"]
    lengths = np.linalg.norm(image.values.astype(np.float32), axis=1)
    assert lengths == pytest.approx([0.0, *map(float, expected)], abs=2e-3)
    text = read_features(folder / "features/text" / key["text"].key, 40, manifest.fingerprint)
    assert (text.present[1:].all(), key["text"].present) == (True, 40)


def test_the_card_has_what_the_tables_say(world, build):
    ledger = world.domains[DOMAIN].ledger
    manifest, _, folder = build()
    images = manifest.card["images"]
    assert (images["items"], images["ok"]) == (40, 40 - ledger["items_without_image"])
    assert images["with_url"] == 40 - ledger["images_no_url"]
    # Each item has a large picture and a thumbnail; where one fails so does the other, except
    # for `second_url`.
    twice = {name: 2 * ledger[f"images_{name}"] for name in ("gone", "truncated", "not_an_image")}
    # Where both fail one more size is tried, which is not there.
    in_vain = ("gone", "truncated", "not_an_image", "not_found")
    missing = 2 * ledger["images_not_found"] + ledger["images_second_url"]
    missing += sum(ledger[f"images_{name}"] for name in in_vain)
    assert images["urls"] == {"ok": images["ok"], "not_found": missing, **twice}
    rows = pl.read_parquet(folder / "interactions.parquet")
    lengths = rows.group_by("user_id").len()["len"]
    assert manifest.card["interactions_per_user"] == {
        "min": lengths.min(),
        "median": lengths.median(),
        "max": lengths.max(),
    }
    ambiguous = sum(
        len({int(item) for item, day in zip(items, days, strict=True) if day == days[-1]}) > 1
        for items, days in zip(
            world.domains[DOMAIN].sequences, world.domains[DOMAIN].days, strict=True
        )
    )
    assert manifest.card["ambiguous_order_share"] == round(ambiguous / 60, 4) > 0


def test_a_second_run_does_nothing_and_asks_nobody(build, asked, read_tree):
    first, _, folder = build()
    before = read_tree(folder)
    assert asked
    asked.clear()
    again, lines, _ = build()
    assert (again, asked) == (first, [])
    assert _unchanged(lines) == list(STAGES)
    assert read_tree(folder) == before


def test_another_core_makes_the_tables_anew_and_asks_for_new_items_only(build, asked):
    first, _, folder = build()
    before = set(asked)
    asked.clear()
    looser, lines, _ = build("prepare.k_core=2")
    assert "tables ..." in lines
    assert looser.counts[-1].step == "2-core"
    assert looser.counts[-1].users > first.counts[-1].users
    assert not before & set(asked)
    back, _, _ = build()
    assert (back.counts, back.fingerprint) == (first.counts, first.fingerprint)
    assert len(pl.read_parquet(folder / "items.parquet")) == 40


def test_two_encoders_live_side_by_side(build, fake_encoder, asked):
    first, _, folder = build()
    asked.clear()
    both, lines, _ = build("features.text=owner/other")
    assert (_redone(lines), asked) == (["text features"], [])
    keys = {(made.modality, made.key) for made in both.features}
    assert keys > {(made.modality, made.key) for made in first.features}
    assert len(keys) == 3
    for made in both.features:
        stored = read_features(folder / "features" / made.modality / made.key, 40, both.fingerprint)
        assert stored.values.shape == (41, made.width)
    back, _, _ = build()
    assert {(made.modality, made.key) for made in back.features} == keys


def test_features_of_other_items_are_not_kept(build, fake_encoder):
    build("features.text=owner/other")
    looser, _, folder = build("prepare.k_core=2")
    assert [made.encoder for made in looser.features] == ["hashing", "pixels"]
    assert len(list((folder / "features/text").iterdir())) == 1


@pytest.fixture
def fake_encoder(monkeypatch):
    """A second text encoder under the name `owner/other`."""
    from pipeline.encoders import HashingTextEncoder, load_encoder

    class Other(HashingTextEncoder):
        def __init__(self):
            super().__init__()
            self.name, self.key = "other", "other-0"

        def _encode(self, inputs):
            return -super()._encode(inputs)

    def load(spec):
        return Other() if spec.name == "owner/other" else load_encoder(spec)

    monkeypatch.setattr("pipeline.feature_stage.load_encoder", load)


def test_two_folders_get_the_same_bytes(build, read_tree):
    _, _, one = build(name="one")
    _, _, other = build("images.connections=1", "images.connections=32", name="other")
    assert read_tree(one) == read_tree(other)
    assert len(read_tree(one)) == 8


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed_or_threads(world, tmp_path, read_tree):
    trees = []
    for seed, threads in (("0", "1"), ("4242", "2")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads}
        command = [sys.executable, "-m", "mmm4rec", "prepare", "--domain", DOMAIN]
        command += ["--source", world.source(DOMAIN), "--config", "demo", "--data-dir"]
        subprocess.run([*command, tmp_path / seed], env=environment, check=True)
        trees.append(read_tree(tmp_path / seed / "prepared"))
    assert trees[0] == trees[1]
    assert len(trees[0]) == 8


def test_no_images_asks_nobody_and_says_so(build, asked):
    manifest, lines, folder = build("images.enabled=false")
    assert asked == []
    assert "image features: none, no item has image" in lines
    assert [made.modality for made in manifest.features] == ["text"]
    assert manifest.card["images"]["ok"] == 0
    assert set(manifest.card["images"]["urls"]) == {"disabled"}
    status = pl.read_parquet(folder / "items.parquet")["image_status"]
    assert set(status) == {"disabled", "missing"}
    later, _, _ = build()
    assert later.card["images"]["ok"] == 30


def test_items_without_an_image_can_be_left_out(world, build):
    _, _, folder = build(name="one")
    ok = pl.read_parquet(folder / "items.parquet").filter(pl.col("image_status") == "ok")["asin"]
    manifest, lines, folder = build("prepare.require_image=true", "prepare.k_core=2", name="two")
    assert "tables with images ..." in lines
    items = pl.read_parquet(folder / "items.parquet")
    assert set(items["image_status"]) == {"ok"}
    assert set(ok) <= set(items["asin"])
    assert items["item_id"].to_list() == list(range(1, len(items) + 1))
    with_image, core = manifest.counts[-2:]
    assert (with_image.step, core.step) == ("with image", "2-core again")
    rows = pl.read_parquet(folder / "interactions.parquet")
    assert (len(rows), rows["user_id"].n_unique()) == (core.interactions, core.users)
    for column in ("user_id", "item_id"):
        assert rows[column].value_counts()["count"].min() >= 2
    assert [made.present for made in manifest.features] == [len(items)] * 2
    # The order of a user's events is that of the set with all items.
    looser, _, whole = build("prepare.k_core=2", name="three")
    assert looser.counts == manifest.counts[:-2]
    assert _histories(folder) == _histories(whole, set(items["asin"]), _users(folder))


def _users(folder):
    return set(pl.read_parquet(folder / "users.parquet")["user"])


def _histories(folder, asins=None, users=None):
    names = {name: pl.read_parquet(folder / f"{name}s.parquet") for name in ("user", "item")}
    rows = (
        pl.read_parquet(folder / "interactions.parquet")
        .join(names["user"], on="user_id", maintain_order="left")
        .join(names["item"].select("item_id", "asin"), on="item_id", maintain_order="left")
        .select("user", "asin", "timestamp")
    )
    if asins is not None:
        rows = rows.filter(pl.col("asin").is_in(list(asins)) & pl.col("user").is_in(list(users)))
    return {user: group.rows() for (user,), group in rows.group_by("user", maintain_order=True)}


def test_a_pair_counts_once_where_the_policy_says_so(world, build):
    manifest, _, _ = build("prepare.duplicates=pair", "prepare.k_core=1")
    read, pairs, *_ = manifest.counts
    assert pairs.step == "first event of each user and item"
    columns = ["asin", "user", "rating", "timestamp"]
    raw = pl.read_csv(world.source(DOMAIN) / f"{DOMAIN}.csv", has_header=False, new_columns=columns)
    assert pairs.interactions == raw.select("user", "asin").n_unique() < read.interactions


def test_an_audit_says_what_it_compared(build):
    _, lines, _ = build()
    assert not any("features: audit" in line for line in lines)
    _, lines, _ = build(audit=True)
    assert _unchanged(lines) == list(STAGES)
    said = [line for line in lines if "features: audit" in line]
    rounding = r"cosine at least 1\.00000, difference at most 0\.000[012]\d"  # of float16
    for line, items, missing in zip(said, (40, 30), (0, 10), strict=True):
        pattern = rf".* features: audit of {items} items: {rounding}; {missing} items are missing"
        assert re.fullmatch(pattern, line)


def test_an_audit_finds_what_was_changed(build):
    manifest, _, folder = build()
    text = next(made for made in manifest.features if made.modality == "text")
    shard = next((folder / "features" / "text" / text.key).glob("part-*.parquet"))
    table = pq.read_table(shard)
    values = np.array(table["values"].combine_chunks().flatten())
    swapped = pa.FixedSizeListArray.from_arrays(pa.array(np.roll(values, text.width)), text.width)
    changed = table.set_column(table.schema.get_field_index("values"), "values", swapped)
    pq.write_table(changed, shard)  # in place, as a careless script would
    with pytest.raises(DataError, match=r"40 of 40 items are not what the encoder says now"):
        build(audit=True)


def test_temporary_failures_are_asked_again_when_told(build, asked):
    first, _, _ = build()
    asked.clear()
    again, lines, _ = build(retry_temporary=True)
    assert "images ..." in lines
    assert asked == []  # nothing failed for the time being
    assert again == first


def test_an_encoder_can_be_none(build):
    manifest, _, _ = build("features.text=none")
    assert [made.modality for made in manifest.features] == ["image"]


def test_a_changed_encoder_folder_is_encoded_again(build, monkeypatch, tmp_path):
    from pipeline.encoders import HashingTextEncoder, load_encoder

    def load(spec):
        return HashingTextEncoder() if spec.modality == "text" else load_encoder(spec)

    monkeypatch.setattr("pipeline.feature_stage.load_encoder", load)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    name = f"features.text={model}"
    build(name)
    assert "text features" in _unchanged(build(name)[1])
    (model / "weights").write_text("another")
    assert _redone(build(name)[1]) == ["text features"]


def test_malformed_lines_within_the_limit_are_set_aside_and_counted(world, build, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in world.source(DOMAIN).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    with (source / f"{DOMAIN}.csv").open("a") as file:
        file.write("B000000001,A1,5.0\n")
    manifest, _, _ = build("prepare.max_bad_lines=1", source=source)
    assert manifest.card["bad_lines"] == {f"{DOMAIN}.csv": 1, f"meta_{DOMAIN}.json.gz": 0}
    bad = pl.read_parquet(tmp_path / "data/work" / DOMAIN / "tables/bad_lines.parquet")
    ledger = world.domains[DOMAIN].ledger
    assert bad.select("line", "reason", "text").rows() == [
        (ledger["rows"] + 1, "3 fields instead of 4", "B000000001,A1,5.0")
    ]


@pytest.fixture
def atomic_source(tmp_path):
    """Three users, four items, no times: sequences of numbers with both indexes."""
    folder = tmp_path / "atomic"
    folder.mkdir()
    rows = [("user_id:token", "item_id_list:token_seq", "item_id:token")]
    rows += [("1", "3 0 1", "2"), ("0", "0 1 2", "3"), ("2", "1", "0")]
    texts = [("item_id:token", "text:token_seq"), *((f"B{n}", f"text {n}") for n in range(4))]
    files = {
        "test.inter": rows,
        "text": texts,
        "item2index": [(f"B{n}", str(n)) for n in range(4)],
        "user2index": [(f"U{n}", str(n)) for n in range(3)],
    }
    for end, lines in files.items():
        text = "".join("\t".join(line) + "\n" for line in lines)
        (folder / f"Tiny.{end}").write_text(text)
    return folder


def test_an_atomic_set_keeps_its_numbers_and_has_no_times(build, atomic_source, asked):
    manifest, lines, folder = build(source=atomic_source, domain="Tiny")
    assert (manifest.source_format, manifest.has_time) == ("atomic", False)
    final = manifest.counts[-1]
    assert (final.step, final.users, final.items, final.interactions) == ("read", 3, 4, 10)
    rows = pl.read_parquet(folder / "interactions.parquet")
    assert rows["user_id"].to_list() == [0] * 4 + [1] * 4 + [2] * 2
    assert rows["item_id"].to_list() == [1, 2, 3, 4, 4, 1, 2, 3, 2, 1]
    assert set(rows["timestamp"]) == {0}
    assert manifest.card["time"] is manifest.card["ambiguous_order_share"] is None
    assert "image features: none, no item has image" in lines
    assert asked == []


def test_features_that_come_with_a_set_are_taken_over(build, atomic_source, read_tree):
    vectors = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0], [1, 1, 1]], np.float32)
    (atomic_source / "Tiny.feat1CLS").write_bytes(vectors.tobytes())
    wanted = ("features.text=source", "features.image=none")
    manifest, _, folder = build(*wanted, source=atomic_source, domain="Tiny")
    (made,) = manifest.features
    assert (made.encoder, made.width, made.present) == ("atomic-text", 3, 3)
    stored = read_features(folder / "features/text" / made.key, 4, manifest.fingerprint)
    assert stored.values[1:].tolist() == vectors.tolist()
    assert stored.present.tolist() == [False, True, True, False, True]
    assert manifest.card["features"] == {"text": {made.key: 3}}
    again = build(*wanted, source=atomic_source, domain="Tiny")
    assert "text features" in _unchanged(again[1])
    with pytest.raises(DataError, match=r"--audit: text features that come .* leave out --audit"):
        build(*wanted, source=atomic_source, domain="Tiny", audit=True)
    with pytest.raises(ConfigError, match=r"--image-encoder source: no image features come with"):
        build("features.image=source", source=atomic_source, domain="Tiny")
    with pytest.raises(ConfigError, match=r"--require-image leaves some out"):
        build(*wanted, "prepare.require_image=true", source=atomic_source, domain="Tiny")


def test_a_domain_of_the_release_of_2023_lives_beside_that_of_2018(build, tmp_path):
    reviews = [
        {
            "user_id": f"U{u}",
            "parent_asin": f"B{i}",
            "rating": 5.0,
            "timestamp": 1_600_000_000_999 - i,
        }
        for u in range(5)
        for i in range(5)
    ]
    items = [
        {"parent_asin": f"B{i}", "title": f"Pen &amp; ink {i}", "store": "Acme", "images": []}
        for i in range(6)
    ]
    for name, rows in (("Office_Products", reviews), ("meta_Office_Products", items)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    manifest, _, _ = build("prepare.release='2023'", source=tmp_path, domain="Office")
    assert (manifest.domain, manifest.source_format) == ("Office-2023", "amazon2023")
    folder = prepared_dir(tmp_path / "data", "Office-2023")
    assert manifest.counts[-1] == Count(step="5-core", users=5, items=5, interactions=25)
    rows = pl.read_parquet(folder / "interactions.parquet")
    assert set(rows["timestamp"]) == {1_600_000_000}  # whole seconds: the line decides
    assert rows["item_id"].to_list() == [1, 2, 3, 4, 5] * 5
    described = pl.read_parquet(folder / "items.parquet")
    assert described["text"][0] == "Pen & ink 0. Acme."
    assert manifest.card["published"]["note"].startswith("not comparable: release is 2023")


def test_an_atomic_set_of_events_goes_through_the_core(build, tmp_path):
    events = [("user_id:token", "item_id:token", "timestamp:float")]
    events += [(f"U{u}", f"B{i}", str(1_400_000_000 + i)) for u in range(5) for i in range(5)]
    events += [("U9", "B0", "1400000000")]
    texts = [("item_id:token", "text:token_seq"), *((f"B{n}", f"text {n}") for n in range(5))]
    for name, lines in (("Tiny.inter", events), ("Tiny.text", texts)):
        (tmp_path / name).write_text("".join("\t".join(line) + "\n" for line in lines))
    manifest, _, _ = build(source=tmp_path, domain="Tiny")
    assert [(c.step, c.users, c.interactions) for c in manifest.counts] == [
        ("read", 6, 26),
        ("5-core", 5, 25),
    ]
    assert manifest.has_time
    with pytest.raises(DataError, match=r"Tiny: nothing is left .*read: 26 .*prepare.k_core=N"):
        build("prepare.k_core=6", source=tmp_path, domain="Tiny")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_a_ray_cluster_prepares_the_same_domain(build, read_tree, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from pipeline import ray_images, ray_jobs

    called = []

    def spy(module, name):
        work = getattr(module, name)

        def spied(*arguments, **options):
            called.append(name)
            return work(*arguments, **options)

        monkeypatch.setattr(module, name, spied)

    spy(ray_images, "fetch_with_ray")
    spy(ray_jobs, "encode_with_ray")
    here, _, folder = build(name="here")
    assert called == []
    settings = ("images.engine=ray", "images.workers=2", "features.engine=ray")
    there, _, other = build(*settings, "features.devices=2", name="there")
    assert called == ["fetch_with_ray", "encode_with_ray", "encode_with_ray"]
    assert there.card == here.card
    assert there.features == here.features
    trees = [read_tree(one) for one in (folder, other)]
    for tree in trees:
        del tree["manifest.json"]  # it names the engine
    assert trees[0] == trees[1]
    assert len(trees[0]) == 7


@pytest.mark.slow
def test_two_machines_prepare_the_same_domain(world, build, tmp_path, read_tree):
    _, _, folder = build(name="one")
    build("features.text=none", "features.image=none", name="two")
    command = [sys.executable, "-m", "mmm4rec", "prepare", "--domain", DOMAIN, "--config", "demo"]
    command += ["--source", world.source(DOMAIN), "--data-dir", tmp_path / "two"]
    command += ["--set", "features.num_nodes=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    machines = [
        subprocess.Popen(
            command,
            env=where | {"NODE_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    other = prepared_dir(tmp_path / "two", DOMAIN)
    trees = [read_tree(one) for one in (folder, other)]
    for tree in trees:
        del tree["manifest.json"]  # it names the machines
    assert trees[0] == trees[1]
    assert len(trees[0]) == 7
