"""SIGINT and SIGTERM while a training prepares, compiles, trains and evaluates: a sentence, the
documented exit code, nothing left over.
"""

import signal
import time

import pytest

from tests.support.marks import slow
from tests.support.old_run import CONFIG, start, unpack

# what the config does besides: each stage says that it has begun and then takes a minute; `busy`
# does not return to Python meanwhile
BUSY = """
import hashlib

def busy():
    print("BEGUN", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)

def slow():
    import time
    print("BEGUN", flush=True)
    time.sleep(60)
"""
STAGES = {
    "fingerprint": "from medjax.runs import stages\nstages.fingerprint = lambda *a, **k: slow()",
    "preparation": (
        "from medjax.prepare import prepare\nwhole = prepare.load\n"
        "def load(*a, **k):\n    import time\n    print('BEGUN', flush=True)\n    time.sleep(1)\n "
        "   return whole(*a, **k)\n"
        "prepare.load = load"
    ),
    "birth": "from medjax.train import state\nstate.born = lambda *a: busy()",
    "compilation": (
        "from medjax.train import update\nmake = update.make\n"
        "def made(*a, **k):\n    step, validate = make(*a, **k)\n    return (lambda *b: busy() or "
        "step(*b)), validate\n"
        "update.make = made"
    ),
    "evaluation": "from medjax.runs import test as scores\nscores.predict_and_score = lambda *a, "
    "**k: slow()",
    "loop": "",
    "validation": (
        "from medjax.train import update\nmake = update.make\n"
        "def made(*a, **k):\n    step, validate = make(*a, **k)\n"
        "    return step, (lambda *b: busy() or validate(*b))\n"
        "update.make = made"
    ),
}


def stopped(folder, stage, number, *flags):
    """Exit code, output and seconds to the end of the process, after one signal in that stage."""
    (folder / "config.py").write_text(CONFIG + BUSY + STAGES[stage])
    process = start(folder, "--config=config.py", "--workdir=new", *flags)
    seen, steps = "", folder / "new" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    if stage == "loop":
        while time.monotonic() < deadline and not (
            steps.is_file() and steps.read_text().count("\n") > 2
        ):
            time.sleep(0.05)
    else:
        for line in process.stdout:
            seen += line
            if "BEGUN" in line:
                break
    assert process.poll() is None, seen + process.communicate()[0]
    began = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=100)
    return process.returncode, seen + out, time.monotonic() - began


def left(folder):
    return [
        p.name
        for p in folder.rglob("*")
        if "medjax-tmp" in p.name or p.name == ".medjax-lock" or p.name.startswith(".tmp-")
    ]


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        slow("fingerprint", signal.SIGTERM, 143),
        ("preparation", signal.SIGINT, 130),
        slow("birth", signal.SIGINT, 130),
        slow("compilation", signal.SIGTERM, 143),
        slow("evaluation", signal.SIGINT, 130),
    ],
)
def test_outside_the_loop_a_signal_ends_the_run_at_once(tmp_path, stage, number, code):
    folder = unpack(tmp_path)
    flags = ["--config.data.store=other"] if stage in ("fingerprint", "preparation") else []
    found, out, seconds = stopped(folder, stage, number, *flags)
    assert found == code, out
    word = "interrupted" if code == 130 else "stopped by SIGTERM"
    last = out.strip().splitlines()[-1]
    assert (
        last.startswith(f"medjax: {word}; files under their final names are complete")
        and "Traceback" not in out
    ), out
    assert seconds < 15, "it did not wait for the work"
    assert left(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"), [("loop", signal.SIGTERM), ("validation", signal.SIGINT)]
)
def test_in_the_loop_the_state_is_saved(tmp_path, stage, number):
    folder = unpack(tmp_path)
    found, out, seconds = stopped(
        folder, stage, number, "--config.train.steps=100000", "--config.train.checkpoint_every=0"
    )
    assert found == 75 and "state saved" in out and "Traceback" not in out, out
    assert seconds < 20 and left(folder) == []
    step = int(out.split("after step ")[1].split(",")[0])
    assert (folder / "new" / "checkpoints" / str(step) / "hashes.json").is_file()
