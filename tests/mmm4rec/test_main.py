import os
import sys

import pytest

from mmm4rec.__main__ import main


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(monkeypatch, given, expected):
    environment = {name: os.environ[name] for name in os.environ if "OMP_" not in name}
    monkeypatch.setattr(os, "environ", {**environment, **given})
    monkeypatch.setattr(sys, "argv", ["mmm4rec", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
