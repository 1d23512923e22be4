"""Lines on the screen during a training: what takes a while, and the time left once it is known."""

import time

from medjax import lines
from medjax.train import console, log


def test_plain_lines_where_there_is_no_terminal(capsys):
    shown = console.Console(steps=100, start=0, seconds=1000.0)
    for step, left in ((1, None), (2, 49.0), (99, 0.5), (100, 0.0)):
        shown.show(step, 0.5, "Dice 0.250", 2.0, left)
    shown.last = 0.0
    shown.show(40, 0.5, "", 0.0, 93785.2)
    shown.note("compiling ...")
    shown.close()
    said = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in said[:2]] == ["step 1/100", "step 100/100"]
    assert said[0].endswith("loss 0.5000  Dice 0.250  2.00 steps/s  waiting for data 0%")
    assert said[1].endswith("00:00:00 left")
    assert said[2:] == ["step 40/100  loss 0.5000  26:03:05 left", "compiling ..."]
    console.Console(steps=9, start=0, seconds=0).note("compiling ...")
    assert not capsys.readouterr().err


def test_the_time_left_is_unknown_until_some_steps_were_measured(tmp_path, monkeypatch, capsys):
    """The first step is mostly compilation, and a resumed run compiles again."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = log.Progress(["a"])
    with log.Log(
        tmp_path, progress, steps=120, start=100, log_every=1, print_seconds=1.0, picture=False
    ) as record:
        now[0] += 500.0  # compilation
        for step in range(101, 113):
            record.submit(step, {"loss": 1.0})
            record.settle()
            now[0] += 3.0
    said = capsys.readouterr().err.splitlines()
    assert not any("left" in line for line in said[:-2]) and "steps/s" not in said[0]
    assert said[-1].startswith("step 112/120") and said[-1].endswith("00:00:24 left")
    rows = log.read(tmp_path / "system.jsonl")
    assert rows[0]["eta_s"] is None and rows[-1]["eta_s"] == 24.0
    assert rows[0]["steps_per_s"] == 0 and abs(rows[-1]["steps_per_s"] - 1 / 3) < 1e-9


def test_work_that_takes_a_while_says_how_long(monkeypatch, capsys):
    now = iter([0.0, 63.4, 0.0, 0.1])
    monkeypatch.setattr(lines.time, "monotonic", lambda: next(now))
    for what in ("compiling", "counting"):
        with lines.busy(what):
            pass
    assert capsys.readouterr().err.splitlines() == [
        "compiling ...",
        "compiling: 63 s",
        "counting ...",
    ]


def test_a_line_has_at_most_100_columns(capsys):
    """First the speed is left out, then words of the score, then the end of a name."""
    scores = ["Dice in patches 0.701, in volumes 0.655", "Dice 0.701, volumes 0.655"]
    long = ("subsegmental artery of the left lower lobe", 0.8)
    for steps, step, worst, score, left in (
        (1200, 650, ("gallbladder", -0.3521), scores[0][:21], None),
        (1200, 650, ("gallbladder", -0.3521), scores[0][:21], 93785.2),
        (1200, 650, ("gallbladder", -0.3521), scores, 93785.2),
        (250000, 120000, ("gallbladder", -0.3521), scores, 93785.2),
        (1200, 650, long, scores, 93785.2),
    ):
        shown = console.Console(steps=steps, start=0, seconds=1.0)
        shown.show(step, -6.5321, score, 1.71, left, worst)
    said = capsys.readouterr().err.splitlines()
    named, left = "loss -6.5321 (highest gallbladder -0.352)", "26:03:05 left"
    assert said == [
        f"step 650/1200  {named}  Dice in patches 0.701  1.71 steps/s",
        f"step 650/1200  {named}  Dice in patches 0.701  {left}",
        f"step 650/1200  {named}  Dice 0.701, volumes 0.655  {left}",
        f"step 120000/250000  {named.replace('adder', 'a…')}  Dice 0.701, volumes 0.655  {left}",
        f"step 650/1200  loss -6.5321 (highest subsegmental… 0.800)  {scores[1]}  {left}",
    ]
    assert max(map(len, said)) == 100
