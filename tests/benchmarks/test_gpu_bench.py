"""The bench of one GPU: its jobs, what a job may cost, what is written and when it is skipped."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import gpu_bench, gpu_job, network_steps
from benchmarks.gpu_bench import Job
from benchmarks.trainings import lines

# a job that reports as the real ones do; its variant says what becomes of it
FAKE = """
import sys, time
from pathlib import Path
from benchmarks.gpu_job import Report, card
out, *job = sys.argv[1:]
report = Report(Path(out) / "results.jsonl", job)
if job[2] == "broken":
    raise SystemExit("no such card")
if job[2] == "early":
    time.sleep(60)
report("lowered")
while job[2] == "second" and '"card"' not in report.path.read_text():
    time.sleep(0.02)
held = card(Path(out) / "lock")
report("card")
if job[2] == "long":
    time.sleep(60)
report("timed", pipelined_s=0.5)
"""


def run(out, jobs, seconds=30.0, **more):
    """Runs fakes; stage -> (network, facts) in the order in which they were written."""

    def words(job):
        return [sys.executable, "-c", FAKE, out, *job.name]

    gpu_bench.run(jobs, words, out, seconds, least_s=0.0, pause_s=0.02, **more)
    return [(one["job"][0], one["stage"], one) for one in lines(out / gpu_bench.RESULTS)]


def test_the_jobs_begin_with_what_matters_most():
    names = [job.name for job in gpu_bench.JOBS]
    assert names[:4] == [(n, s, "") for n in ("unet", "tsfm_h") for s in ("medjax", "torch")]
    assert len(set(names)) == len(names) == 16
    assert {job.network for job in gpu_bench.JOBS} == set(gpu_bench.NETWORKS) == set(gpu_bench.TINY)
    both = Counter(job.network for job in gpu_bench.JOBS if not job.variant)
    assert set(both.values()) == {2}
    for peers in ([p for _, p, _ in gpu_bench.NETWORKS.values()], gpu_bench.TINY_PEERS.values()):
        assert set(peers) <= {*network_steps.NETWORKS, "m4oe"}
    for job in gpu_bench.JOBS:
        assert job.side == "torch" or job.variant in {"", *gpu_bench.VARIANTS}
        assert 0 < job.cap_s <= 200


def test_timed_jobs_are_skipped_and_others_are_not():
    jobs = gpu_bench.JOBS[:3]
    stages = ("timed", "failed", "skipped")
    done = [{"job": list(j.name), "stage": s} for j, s in zip(jobs, stages, strict=True)]
    assert gpu_bench.left_to_do(jobs, done) == list(jobs[1:])
    assert gpu_bench.left_to_do(jobs, []) == list(jobs)


def test_a_cap_counts_from_the_card_and_failures_cost_nothing(tmp_path):
    """The second job waits for the card longer than its own cap, and is timed."""
    jobs = [
        Job("first", "medjax", "long", 1.0),
        Job("second", "medjax", "second", 0.9),
        Job("third", "torch", "broken", 9.0),
    ]
    ended = []
    found = run(tmp_path, jobs, ahead=2, after=lambda: ended.append(1))
    last = {network: one for network, _, one in found}
    assert last["first"]["stage"] == "stopped" and last["first"]["after"] == "card"
    assert last["first"]["why"] == "its time was over"
    assert last["second"]["stage"] == "timed" and last["second"]["pipelined_s"] == 0.5
    assert last["third"]["stage"] == "failed"
    assert last["third"]["why"] == "exit 1: no such card"
    assert len(ended) == 3
    clocks = {(network, stage): one["clock"] for network, stage, one in found}
    assert clocks["second", "lowered"] <= clocks["first", "stopped"] <= clocks["second", "card"]
    assert (tmp_path / "third_torch_broken.log").read_text() == "no such card\n"


def test_nothing_runs_past_the_time_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bench, "LAST_S", 0.0)
    jobs = [Job("one", "medjax", "early", 60.0), Job("two", "medjax", "", 60.0)]
    found = run(tmp_path, jobs, seconds=0.4, ahead=0)
    assert [(network, stage) for network, stage, _ in found] == [("one", "stopped")]
    assert found[0][2]["why"] == "the time of all was over" and found[0][2]["after"] == "nothing"


def test_every_stage_is_a_line_of_json(tmp_path):
    report = gpu_job.Report(tmp_path / "results.jsonl", ("unet", "medjax", ""))
    report("card")
    report("compiled", planned_gib=gpu_job.gib(3 << 29))
    one, two = lines(tmp_path / "results.jsonl")
    assert one["job"] == ["unet", "medjax", ""] and set(one) == {"job", "stage", "s", "clock"}
    assert two["stage"] == "compiled" and two["planned_gib"] == 1.5 and gpu_job.gib(None) is None
    assert one["clock"] <= two["clock"] and two["s"] >= 0


def test_steps_are_timed_alone_and_one_after_another(monkeypatch):
    """A clock that a step moves by 1/4 s and waiting by 3/4 s."""
    now, sent, waited = [0.0], [], []

    def step():
        sent.append(1)
        now[0] += 0.25
        return len(sent)

    def wait(value):
        waited.append(value)
        now[0] += 0.75

    monkeypatch.setattr(gpu_job.time, "perf_counter", lambda: now[0])
    found = gpu_job.timed(step, wait, 5.0)
    assert found["step_s"] == found["fastest_s"] == 1.0
    assert found["pipelined_s"] == (5 * 0.25 + 0.75) / 5
    assert found["steps"] == 10 == len(sent) - 2 and waited[-1] == len(sent)


def test_the_table_says_speed_memory_and_what_went_wrong():
    def line(job, stage, **facts):
        return {"job": list(job), "stage": stage, "s": 1.5, "clock": 0.0, **facts}

    ours, theirs = ("unet", "medjax", ""), ("tsfm_h", "torch", "")
    timed = {"step_s": 0.11, "pipelined_s": 0.1, "peak_gib": 21.5, "device": "NVIDIA H200"}
    found = [
        line(theirs, "failed", why="RuntimeError: a | b"),
        line(ours, "traced"),
        line(ours, "lowered"),
        line(ours, "compiled", cached=2, planned_gib=21.7),
        line(ours, "timed", **timed, version="0.10.2"),
    ]
    text = gpu_bench.table(found, {"unet": {"forward_macs": 2_865_643_315_200, "alike": True}})
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[:4]]
    rate = 6 * 2.8656433152 / 0.1
    assert rows[2][:7] == ["unet", "medjax", "110.0", "100.0", "1.5", "2", "3"]
    assert rows[2][7:] == ["21.5", "21.7", f"{rate:.3g}", f"{rate / 989:.3f}", ""]
    assert rows[3][:2] == ["tsfm_h", "torch"]
    assert rows[3][-1] == "failed: RuntimeError: a / b"
    assert text.rstrip().endswith("NVIDIA H200, 0.10.2")
    assert len({len(row) for row in rows}) == 1


def test_the_cache_travels_in_few_files(tmp_path, monkeypatch):
    cache, out, again = (tmp_path / name for name in ("cache", "out", "again"))
    for name, size in (("jax/small", 3000), ("triton/large", 60_000), ("jax/other", 2000)):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(range(250)) * (size // 250))
    (cache / "unet.log").write_text("text")
    out.mkdir()
    gpu_bench.pack(cache, out)
    assert gpu_bench.unpack(out, again)
    assert (again / "triton/large").read_bytes() == (cache / "triton/large").read_bytes()
    assert not (again / "unet.log").exists() and not gpu_bench.unpack(cache, again)
    monkeypatch.setattr(gpu_bench, "PART", ((2 << 20) + 30_000) // 3)
    gpu_bench.pack(cache, out)
    gpu_bench.unpack(out, tmp_path / "less")
    assert sorted(p.name for p in (tmp_path / "less").rglob("*") if p.is_file()) == [
        "other",
        "small",
    ]


def test_a_peer_without_torch_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"unet": {"peer": "unet"}}))
    words = ["--plan", plan, "--out", tmp_path, "--cache", tmp_path, "--lock", tmp_path / "lock"]
    monkeypatch.setattr(sys, "argv", ["x", "--job", "unet", "torch", "", *map(str, words)])
    gpu_job.main()
    (line,) = lines(tmp_path / "results.jsonl")
    assert line["stage"] == "skipped" and line["why"] == "torch is not installed"


@pytest.mark.slow
def test_the_paper_sizes_are_what_is_planned():
    found = gpu_bench.described("unet", "xla", tiny=False)
    assert found["parameters"] == 29_319_560  # and 17.2 TFLOP per step, benchmarks/results
    assert 6 * found["forward_macs"] == pytest.approx(17.2e12, rel=0.01)
    train = found["config"]["train"]
    assert train["conv_layout"] == "xla" and train["batch"] == 4
    assert found["config"]["augment"]["on"] is False


@pytest.mark.slow
def test_small_jobs_run_and_are_not_repeated(tmp_path, capsys):
    """The real update of two networks, in processes of their own."""
    out = tmp_path / "out"
    words = ["--tiny", "--out", out, "--cache", tmp_path / "cache", "--sides", "medjax", "--pack"]
    words = [*map(str, words), "--seconds", "300", "--only", "unet", "m4oe"]
    gpu_bench.main(words)
    found = lines(out / "results.jsonl")
    timed = [tuple(line["job"]) for line in found if line["stage"] == "timed"]
    assert set(timed) == {j.name for j in gpu_bench.JOBS if j.network in ("unet", "m4oe")} - {
        ("unet", "torch", ""),
        ("unet", "torch", "channels_last"),
        ("m4oe", "torch", ""),
    }
    assert all(math.isfinite(line["loss"]) for line in found if line["stage"] == "first")
    of_unet = [one["stage"] for one in found if one["job"] == ["unet", "medjax", ""]]
    assert of_unet == ["traced", "lowered", "card", "compiled", "placed", "first", "timed"]
    assert (out / "unet.hlo.gz").is_file() and (out / "cache.tar.0").is_file()
    rows = (out / "table.md").read_text().splitlines()
    assert rows[2].startswith("| unet | medjax |") and "cpu" in rows[-1]
    capsys.readouterr()
    gpu_bench.main(words)
    assert capsys.readouterr().out.startswith("0 of 5 jobs, with a cache")
    assert lines(out / "results.jsonl") == found


@pytest.mark.parity
def test_small_peers_run(tmp_path):
    pytest.importorskip("torch")
    words = ["--tiny", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    gpu_bench.main([*words, "--sides", "torch", "--seconds", "300"])
    found = lines(Path(tmp_path, "out", "results.jsonl"))
    timed = {tuple(line["job"]) for line in found if line["stage"] == "timed"}
    assert timed == {j.name for j in gpu_bench.JOBS if j.side == "torch"}
