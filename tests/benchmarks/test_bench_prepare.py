import re

import pytest

from benchmarks.bench_prepare import main, measure_side, total
from benchmarks.measure import Meter, Stage
from benchmarks.raw_dump import write_raw_dump


def test_a_meter_calls_each_stage_and_tells_its_peak():
    meter = Meter()
    held = meter("large", lambda: bytearray(b"1") * 200_000_000)
    assert len(held) == 200_000_000
    del held
    assert meter("small", lambda: "done") == "done"
    large, small = meter.stages
    assert (large.name, small.name) == ("large", "small")
    assert large.peak_mb > small.peak_mb + 150
    assert total([Stage("a", 1.0, 5.0), Stage("b", 2.0, 3.0)]) == Stage("total", 3.0, 5.0)


@pytest.mark.parametrize("side", ["pipeline", "plain json", "plain eval"])
def test_every_side_prepares_the_same_dump(tmp_path, side, monkeypatch):
    from pipeline import survivors

    for name in ("collect_candidates", "read_metadata", "k_core"):  # what the benchmark wraps
        monkeypatch.setattr(survivors, name, getattr(survivors, name))
    write_raw_dump(tmp_path, 20_000, 800)
    stages = [stage.name for stage in measure_side(side, tmp_path)]
    assert stages[0] == "read ratings"
    assert stages[-1] == "write"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dump.csv", "meta_Dump.json.gz"]


@pytest.mark.slow
def test_the_table_has_every_size_and_side(tmp_path, capsys):
    main(["--ratings", "20000", "30000", "--repeat", "1", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert len(re.findall(r"times the time and [\d.]+ times the memory", printed)) == 4
    growth = printed.rstrip().splitlines()[-2:]
    assert [line.split()[0] for line in growth] == ["20,000", "30,000"]
    assert list(tmp_path.iterdir()) == []
