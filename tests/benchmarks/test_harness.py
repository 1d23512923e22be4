"""The shared parts of the benchmarks: flags, turns, memory, commands, tables."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness


def test_flags_take_the_type_of_their_default():
    made = harness.parser(
        "What it is.\n\nMore.",
        runs=5,
        limit=2.5,
        patch=(1, 2, 3),
        fast=False,
        each_s=harness.flag(1.0, help="limit"),
        side=harness.flag("a", choices=("a", "b")),
        folders=harness.flag((), type=Path, nargs="*"),
        data=harness.flag(type=Path),
        hidden=harness.flag(False, help=None),
    )
    assert made.description == "What it is."
    given = made.parse_args(
        "--patch 4 5 6 --runs 2 --fast --each-s 3 --folders x y --data z".split()
    )
    assert given.patch == (4, 5, 6) and given.runs == 2 and given.fast and given.each_s == 3.0
    assert given.folders == (Path("x"), Path("y")) and given.data == Path("z")
    assert given.limit == 2.5 and given.side == "a" and not given.hidden
    assert "--hidden" not in made.format_help() and "limit" in made.format_help()
    for wrong in (["--patch", "1", "2"], ["--side", "c"], ["--runs", "x"]):
        with pytest.raises(SystemExit):
            made.parse_args(wrong)


def test_contenders_alternate_and_the_first_round_is_not_counted():
    calls, now = [], [0.0]

    def work(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds
            return name

        return run

    turns = harness.in_turns(
        {"a": work("a", 4.0), "b": work("b", 2.0)}, 3, clock=lambda: (now[0], now[0] / 2)
    )
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert turns.seconds["wall"] == {"a": [4.0] * 3, "b": [2.0] * 3}
    assert turns.median("cpu") == {"a": 2.0, "b": 1.0} and turns.ratio("a", "b") == 2.0
    assert turns.first == {"a": 4.0, "b": 2.0} and turns.results == {"a": "a", "b": "b"}


def test_a_ratio_is_the_median_over_pairs_not_of_medians():
    assert harness.ratio([1.0, 10.0, 100.0], [1.0, 5.0, 10.0]) == 2.0
    with pytest.raises(ValueError):
        harness.ratio([1.0], [1.0, 2.0])


def test_memory_and_time_of_children_are_seen(tmp_path):
    work = "import time; b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096]); time.sleep(1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    found = harness.run([sys.executable, "-c", child], tmp_path / "log")
    assert found["exit"] == 0 and 0.19 < found["peak_gib"] < 1 and found["seconds"] >= 1
    with harness.watched() as memory:
        held = np.ones(100 << 20, np.uint8)
        time.sleep(0.2)
    assert memory.peak - memory.base > 90 << 20 and held.all()


def test_a_commands_last_line_is_its_result():
    words = [sys.executable, "-c", "print('chatter'); print('{\"a\": 1}')"]
    assert harness.run_json(words) == {"a": 1}
    assert harness.script("x.y", 1, Path("z")) == [sys.executable, "-m", "x.y", "1", "z"]


def test_results_are_printed_and_written(tmp_path, capsys):
    harness.show({"a": (1, 2)}, tmp_path / "out.json", indent=None)
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2]}
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": [1, 2]}
    assert harness.table(["x", "n"], [["a", 1], ["b", 22]], right=(1,)).splitlines() == [
        "| x | n |",
        "|---|---:|",
        "| a | 1 |",
        "| b | 22 |",
    ]
    assert set(harness.machine()) == {"cpus", "load"}
