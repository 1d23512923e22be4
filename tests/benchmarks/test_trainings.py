"""The runner of jobs that comparisons share: order, failures, time, what is reported."""

import sys
import time

from benchmarks.trainings import Job, run, training


def python(code):
    return [sys.executable, "-c", code]


def test_jobs_wait_for_what_they_need_and_failures_stop_only_these(tmp_path):
    first = tmp_path / "first"
    jobs = {
        "alone": Job([python("print('alone')")]),
        "second": Job([python(f"open({str(first)!r}).read()")], "first"),
        "first": Job([python(f"open({str(first)!r}, 'w').write('x')")]),
        "broken": Job([python("raise SystemExit('reason')"), python("print('next')")]),
        "third": Job([python("print(1)")], "broken"),
        "some": Job([python("raise SystemExit(3)")], good=(0, 3)),
        "after some": Job([python("import os; print(os.environ['WORD'])")], "some"),
    }
    reports = []
    done = run(jobs, tmp_path, 2, report=lambda done: reports.append(set(done)), WORD="hello")
    assert {name: entry["rc"] for name, entry in done.items()} == {
        "alone": 0,
        "first": 0,
        "second": 0,
        "broken": 1,
        "third": None,
        "some": 3,
        "after some": 0,
    }
    assert "reason" in done["broken"]["log"] and "next" in done["broken"]["log"]
    assert done["third"]["log"] == "broken failed before it" and "log" not in done["some"]
    assert (tmp_path / "after some.log").read_text() == "hello\n"
    assert len(reports) == 6 and {"alone", "first", "broken"} <= reports[-1]


def test_what_runs_past_the_limit_is_stopped_and_the_rest_is_not_begun(tmp_path):
    jobs = {
        "long": Job([python("import time; time.sleep(60)")]),
        "later": Job([python("print(1)")]),
    }
    began = time.monotonic()
    done = run(jobs, tmp_path, 1, timeout_s=1.0)
    assert time.monotonic() - began < 30
    assert done["long"]["rc"] is None and done["later"]["log"] == "no time was left"


def test_a_training_is_the_command_of_the_engine(tmp_path):
    job = training("configs/x.py:y", tmp_path, "one", ("--config.a=1",), "zero")
    assert job.after == "zero"
    assert list(job.lines[0][1:]) == [
        "-m",
        "medjax.main",
        "--config=configs/x.py:y",
        f"--workdir={tmp_path / 'one'}",
        "--config.a=1",
    ]
