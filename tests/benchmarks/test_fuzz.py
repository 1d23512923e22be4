"""A slice of `benchmarks/fuzz.py`, and that the fuzzer notices what it is there for."""

import random

import pytest

from benchmarks import fuzz, mutant_files, mutants
from medjax.errors import ModelError

KINDS = ["torch", "npz", "archive", "stablehlo"]


@pytest.mark.slow
def test_120_mutants_are_read_or_refused_with_a_sentence(tmp_path):
    found = fuzz.fuzz(120, 7, KINDS, tmp_path / "failures", workers=1)
    assert sum(found[kind][outcome] for kind in KINDS for outcome in ("read", "refused")) == 120
    assert not [(kind, name) for kind in KINDS for name in fuzz.FAILURES if found[kind][name]]
    assert all(found[kind]["refused"] for kind in KINDS) and not (tmp_path / "failures").exists()
    # few flipped functions can still be read, and which depends on the bytes of this version
    assert all(found[kind]["read"] for kind in KINDS if kind != "stablehlo")


def test_a_whole_function_is_read(tmp_path):
    (data,) = mutant_files.seeds(tmp_path, ["stablehlo"])["stablehlo"]
    path = tmp_path / mutant_files.name_of("stablehlo", 0)
    path.write_bytes(data)
    assert fuzz.read("stablehlo", path) == ("read", "")


def test_whole_files_are_read_and_mutants_depend_on_the_seed_alone(tmp_path):
    sources = mutant_files.seeds(tmp_path, ["torch"])["torch"]
    for k, data in enumerate(sources):
        path = tmp_path / mutant_files.name_of("torch", k)
        path.write_bytes(data)
        assert fuzz.read("torch", path) == ("read", "")
        assert mutant_files.kind_of(path) == "torch"
    first, again = (
        [mutants.mutant("torch", sources, random.Random(f"1 {k}")) for k in range(40)]
        for _ in range(2)
    )
    assert first == again and len(set(first)) > 35


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        (KeyError("x"), "traceback"),
        (MemoryError(), "memory"),
        (ModelError("without its file"), "unreadable message"),
        (ModelError("two\nlines", path="torch-1.pth"), "refused"),
        (None, "read"),
    ],
)
def test_outcomes_are_told_apart(tmp_path, monkeypatch, what, outcome):
    def raising(kind, path):
        if what is not None:
            raise what

    monkeypatch.setattr(mutant_files, "read", raising)
    assert fuzz.read("torch", tmp_path / "torch-1.pth")[0] == outcome


def test_a_crash_is_counted_its_bytes_are_kept_and_the_next_file_is_read(tmp_path, monkeypatch):
    def started(self):
        code = (
            "import os, sys\nfor line in sys.stdin:\n    data = open(line.strip().split(' ', "
            "1)[1], 'rb').read()\n"
            '    os.kill(os.getpid(), 11) if len(data) % 2 else print(\'["read", ""]\', flush=True)'
        )
        self.process = fuzz.subprocess.Popen([fuzz.sys.executable, "-c", code], stdin=-1, stdout=-1)

    monkeypatch.setattr(fuzz.Reader, "_start", started)
    sizes = iter(range(6))
    monkeypatch.setattr(mutants, "mutant", lambda kind, sources, rng: bytes(next(sizes)))
    found = fuzz.fuzz(6, 0, ["torch"], tmp_path / "failures", workers=1)
    assert found["torch"]["signal"] == 3 and found["torch"]["read"] == 3
    assert sorted(len(p.read_bytes()) for p in (tmp_path / "failures").iterdir()) == [1, 3, 5]
