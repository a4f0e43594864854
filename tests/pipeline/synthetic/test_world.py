"""What is on disk and on the server is what was planted."""

import csv
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict

import pytest
from PIL import Image, UnidentifiedImageError

from mmm4rec.errors import ConfigError
from pipeline.synthetic import DomainSpec, WorldSpec, build_world, serve, shop
from pipeline.synthetic.catalogue import write_metadata
from pipeline.synthetic.items import SPAN_TITLE


def read_rows(world, name):
    with (world.source(name) / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [(asin, user, stars, int(at)) for asin, user, stars, at in csv.reader(file)]


def five_core(rows):
    while True:
        users, items = Counter(row[1] for row in rows), Counter(row[0] for row in rows)
        kept = [row for row in rows if users[row[1]] >= 5 and items[row[0]] >= 5]
        if len(kept) == len(rows):
            return rows
        rows = kept


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fetch(url):
    """Return status and body."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def decodes(body):
    try:
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
    except (OSError, UnidentifiedImageError):
        return False
    return True


@pytest.mark.parametrize("name", ["MiniFood", "MiniOffice"])
def test_cleaning_the_raw_files_gives_back_the_sequences_that_were_drawn(tiny, read_metadata, name):
    domain = tiny.domains[name]
    rows = read_rows(tiny, name)
    distinct = list(dict.fromkeys(rows))
    listed = {line["asin"] for line in read_metadata(tiny, name)}
    core = five_core([row for row in distinct if row[0] in listed])
    found = defaultdict(list)
    for _position, (asin, user, _stars, at) in sorted(
        enumerate(core), key=lambda item: (item[1][3], item[0])
    ):
        found[user].append((asin, at))
    drawn = [
        [(domain.catalogue.core[i], day * 86_400) for i, day in zip(items, days, strict=True)]
        for items, days in zip(domain.sequences, domain.days, strict=True)
    ]
    assert sorted(found.values()) == sorted(drawn)
    ledger = domain.ledger
    assert ledger["rows"] == len(rows)
    assert ledger["duplicate_rows"] == len(rows) - len(distinct) > 0
    assert ledger["core_users"] == len(found)
    assert ledger["core_items"] == len({row[0] for row in core})
    assert ledger["core_interactions"] == len(core)
    assert ledger["users_below_core"] == len({row[1] for row in rows}) - len(found)
    unlisted = {row[0] for row in rows} - listed
    assert ledger["items_without_metadata"] == len(unlisted)
    assert min(Counter(row[0] for row in distinct if row[0] in unlisted).values()) >= 5
    assert ledger["items_below_core"] == len(listed) - ledger["core_items"]
    tied = [u for u, events in found.items() if len({at for _, at in events}) < len(events)]
    assert ledger["users_with_ties"] == len(tied) > 0


def test_the_core_needs_more_than_one_round_of_filtering(miniature, read_metadata):
    for name in miniature.domains:
        listed = {line["asin"] for line in read_metadata(miniature, name)}
        rows = [row for row in dict.fromkeys(read_rows(miniature, name)) if row[0] in listed]
        users, items = Counter(row[1] for row in rows), Counter(row[0] for row in rows)
        once = [row for row in rows if users[row[1]] >= 5 and items[row[0]] >= 5]
        assert len(five_core(once)) < len(once)


def test_rows_are_whole_days_out_of_order(tiny):
    times = [row[3] for row in read_rows(tiny, "MiniFood")]
    assert all(at % 86_400 == 0 for at in times)
    assert times != sorted(times)
    assert max(times) - min(times) > 3 * 365 * 86_400


def test_sequences_have_5_to_15_items(miniature):
    for domain in miniature.domains.values():
        lengths = {len(sequence) for sequence in domain.sequences}
        assert 5 <= min(lengths) <= max(lengths) <= 15


def test_metadata_has_junk_titles_and_outdated_lines(tiny, read_metadata):
    for name, domain in tiny.domains.items():
        lines = read_metadata(tiny, name)
        last = {line["asin"]: line for line in lines}
        assert domain.ledger["stale_metadata_lines"] == len(lines) - len(last) > 0
        titles = [line["title"] for line in last.values()]
        assert domain.ledger["titles_with_span"] == titles.count(SPAN_TITLE) > 0
        assert domain.ledger["titles_with_tag"] == sum(title.startswith("<b>") for title in titles)
        assert domain.ledger["titles_with_entity"] == sum("&#39;" in title for title in titles)
        assert all(line["title"] != "Currently unavailable" for line in last.values())
        without = [line for line in last.values() if not line["imageURLHighRes"]]
        assert domain.ledger["images_no_url"] == len(without) > 0


def test_the_server_answers_as_planned(tiny, read_metadata):
    for name, domain in tiny.domains.items():
        with serve(tiny) as url:
            last = {line["asin"]: line for line in read_metadata(tiny, name)}
            found = Counter()
            for asin, fate in zip(domain.catalogue.core, domain.catalogue.fates, strict=True):
                urls = [*last[asin]["imageURLHighRes"], *last[asin]["imageURL"]]
                assert all(re.fullmatch(rf"{url}/images/I/[\w.]+\.(jpg|png)", u) for u in urls)
                answers = [fetch(each) for each in urls]
                check_answers(fate, answers, urls)
                found[fate] += 1
            assert found == {
                key.removeprefix("images_"): count
                for key, count in domain.ledger.items()
                if key.startswith("images_")
            }


def check_answers(fate, answers, urls):
    codes = [code for code, _ in answers]
    good = [code == 200 and decodes(body) for code, body in answers]
    expected = {
        "ok": ([200, 200], [True, True]),
        "slow": ([200, 200], [True, True]),
        "flaky": ([500, 200], [False, True]),
        "second_url": ([404, 200], [False, True]),
        "no_url": ([], []),
        "not_found": ([404, 404], [False, False]),
        "gone": ([410, 410], [False, False]),
        "truncated": ([200, 200], [False, False]),
        "not_an_image": ([200, 200], [False, False]),
    }
    assert (codes, good) == expected[fate], fate
    if fate == "flaky":
        assert fetch(urls[0])[0] == 200
    if fate == "slow":
        started = time.perf_counter()
        fetch(urls[0])
        assert time.perf_counter() - started >= shop.SLOW_SECONDS
    if fate == "not_an_image":
        assert answers[0][1].startswith(b"<!DOCTYPE html>")


def test_the_server_knows_its_pictures_only(tiny):
    with serve(tiny) as url:
        for path in ("/", "/images/I/", "/images/I/../../../MiniFood/MiniFood.csv", "/etc/passwd"):
            request = urllib.request.Request(url + path)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request, timeout=5)


def test_another_port_is_taken_and_written_where_the_usual_one_is_busy(
    tiny, read_metadata, monkeypatch
):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        monkeypatch.setattr(shop, "PREFERRED_PORT", port)
        with serve(tiny) as url:
            assert url != f"http://127.0.0.1:{port}"
            urls = [u for line in read_metadata(tiny, "MiniFood") for u in line["imageURL"]]
            assert all(u.startswith(url + "/images/I/") for u in urls)
            assert decodes(fetch(url + working_image(tiny))[1])
        with serve(tiny) as again:
            assert again == url  # the next free one: a second run finds its inputs unchanged


def working_image(world):
    catalogue = world.domains["MiniFood"].catalogue
    asin = catalogue.core[catalogue.fates.index("ok")]
    return [line for line in catalogue.lines if line["asin"] == asin][-1]["imageURL"][0]


def test_a_fifth_to_a_quarter_of_the_items_end_without_an_image(miniature):
    for domain in miniature.domains.values():
        share = domain.ledger["items_without_image"] / domain.ledger["core_items"]
        assert 0.2 <= share <= 0.25
        fates = Counter(domain.catalogue.fates)
        lost = sum(fates[fate] for fate in shop.WITHOUT_IMAGE)
        assert lost == domain.ledger["items_without_image"]


def test_the_same_seed_writes_the_same_bytes_whatever_the_hash_seed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.synthetic import *\n"
        "spec = WorldSpec((DomainSpec('MiniArts', 60, 40, 6.0),), ())\n"
        "build_world(Path(sys.argv[1]), 5, spec)"
    )
    for number in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / number)],
            env={**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
    assert tree(tmp_path / "1") == tree(tmp_path / "2") != {}


def test_building_again_replaces_and_another_seed_differs(tmp_path, tiny_spec):
    first = build_world(tmp_path, 1, tiny_spec)
    before = tree(tmp_path)
    build_world(tmp_path, 1, tiny_spec)
    assert tree(tmp_path) == before
    with serve(first):
        pass
    write_metadata(
        first.source("MiniFood"),
        "MiniFood",
        first.domains["MiniFood"].catalogue,
        shop.base_url(shop.PREFERRED_PORT),
    )
    name = "MiniFood/meta_MiniFood.json.gz"
    assert tree(tmp_path)[name] == before[name]
    build_world(tmp_path, 2, tiny_spec)
    assert tree(tmp_path).keys() != before.keys()


def test_the_miniature_has_the_sizes_of_the_demo(miniature):
    assert (len(miniature.pretraining), len(miniature.downstream)) == (3, 2)
    assert list(miniature.domains) == [*miniature.pretraining, *miniature.downstream]
    ledgers = miniature.ledger.values()
    assert 700 <= sum(ledger["core_items"] for ledger in ledgers) <= 900
    assert 2500 <= sum(ledger["core_users"] for ledger in ledgers) <= 3500


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DomainSpec("Books", 70, 45, 6.0), "domain 'Books' has no vocabulary; known: MiniFood"),
        (DomainSpec("MiniArts", 70, 39, 6.0), r"num_items \(39\) must be at least 40"),
        (DomainSpec("MiniArts", 70, 45, 4.5), r"mean_length \(4.5\) must be 5 to 15"),
        (DomainSpec("MiniArts", 30, 45, 6.0), "bought . times, 5 keep it in the core: more than"),
    ],
)
def test_a_world_that_cannot_be_is_refused(tmp_path, spec, message):
    with pytest.raises(ConfigError, match=message):
        build_world(tmp_path, 0, WorldSpec((spec,), ()))
    assert not (tmp_path / "www").exists()
