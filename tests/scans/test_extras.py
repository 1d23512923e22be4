"""A library that is not installed is reported with the command that installs it."""

import sys

import pytest

from medjax.errors import UsageError
from medjax.scans import extras


def test_a_library_is_imported():
    assert extras.needs("json").loads("[1]") == [1]
    assert extras.needs("os.path").join("a", "b") == "a/b"


def test_a_missing_one_names_file_and_command(monkeypatch):
    for name in ("highdicom", "highdicom.seg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as caught:
        extras.needs("highdicom.seg", "/data/seg.dcm")
    assert str(caught.value) == (
        "/data/seg.dcm: this format needs highdicom, which is not installed. "
        'Fix: pip install "medjax[formats]"'
    )
    assert caught.value.exit_code == 2
