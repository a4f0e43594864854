"""The image benchmark in small: what its server does, and what it prints."""

import re
from collections import Counter

from benchmarks.bench_images import main, make_items


def test_what_becomes_of_a_url_stands_in_its_path():
    items = make_items("http://localhost", 2000, failures=0.3)
    fates = Counter(url.split("/")[3] for url in items["image_urls"].explode())
    assert 1300 < fates["ok"] < 1500
    assert {"gone", "flaky", "half", "silent"} < set(fates)
    assert make_items("http://localhost", 2000, failures=0.3).equals(items)
    assert set(make_items("", 50, failures=0)["image_urls"].explode().str.slice(1, 2)) == {"ok"}


def test_every_url_is_measured(capsys, monkeypatch):
    monkeypatch.setattr("pipeline.fetching.BACKOFF_S", 0.01)
    monkeypatch.setattr("benchmarks.bench_images.TIMEOUT_S", 0.2)
    main(["--urls", "60", "--rate", "2000", "--connections", "16", "--failures", "0.2"])
    printed = capsys.readouterr().out
    numbers = dict(re.findall(r"^outcome (\w+) +(\d+)$", printed, re.MULTILINE))
    assert sum(map(int, numbers.values())) == 60
    assert 40 < int(numbers["ok"]) < 60
    requests = int(re.search(r"requests +(\d+) for 60 URLs", printed)[1])
    assert 60 < requests < 120
    assert "2,000 requests/s" in printed
    assert "floor: 0.0" in printed
