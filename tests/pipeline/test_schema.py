import json

import pytest

from mmm4rec.errors import DataError
from pipeline.schema import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    atomic_path,
    item_fingerprint,
    read_manifest,
    write_json,
)


def _manifest(**changes: object) -> dict[str, object]:
    values = {
        "format_version": FORMAT_VERSION,
        "domain": "Tiny",
        "source_format": "amazon2018",
        "inputs": [],
        "parameters": {},
        "versions": {},
        "counts": [],
        "fingerprint": "f",
        "has_time": True,
        "features": [],
        "card": {},
    }
    return {**values, **changes}


def test_manifest_reads_back(tmp_path):
    write_json(_manifest(), tmp_path / MANIFEST)
    assert read_manifest(tmp_path) == Manifest.model_validate(_manifest())


def test_a_folder_without_manifest_names_the_command_that_makes_it(tmp_path):
    folder = tmp_path / "prepared" / "Tiny"
    with pytest.raises(DataError, match=r"Next: mmm4rec prepare --domain Tiny --data-dir"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not read as a manifest"),
        (json.dumps(_manifest(extra=1)), "does not read as a manifest"),
        (json.dumps(_manifest(format_version=99)), "has format 99, this version reads"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_whatever_goes_wrong_the_old_file_stays_and_nothing_half_written(tmp_path, error):
    target = tmp_path / "table.json"
    write_json({"old": 1}, target)

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert json.loads(target.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_fingerprint_separates_names():
    assert item_fingerprint(["AB", "C"]) != item_fingerprint(["A", "BC"])
