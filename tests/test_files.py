"""Names, atomic writing, temporary files and locks of `medjax.files`, and what the commands do with
signals.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medjax import files, locks
from medjax.errors import DataError, UsageError, WriteError, shown


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b", "a\\b", "", ".hidden", "..", "a\0b", 5, None, "x" * 256, "ü" * 128],
)
def test_names_that_are_paths_are_refused(name):
    with pytest.raises(DataError, match="unusable case name"):
        files.check_name(name, "case name", path="list.json", error=DataError)


@pytest.mark.parametrize(
    "name",
    ["a", "-rf", "=cmd", "<script>", "[x]*?", "CON", "new\nline", "a b", "x" * 255, "ü" * 127],
)
def test_odd_names_that_are_legal_are_kept(name):
    assert files.check_name(name, "case name") == name


def test_a_suffix_counts():
    assert files.unusable("x" * 250) == "" and "longer than 248 bytes" in files.unusable(
        "x" * 250, suffix=".nii.gz"
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    files.write_json(tmp_path / "b" / "c.json", {"x": 1})
    assert files.read_json(tmp_path / "b" / "c.json") == {"x": 1}


def test_links_are_replaced_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "precious" and (
        tmp_path / "link"
    ).read_text() == "new"


def test_exclusive_never_replaces(tmp_path):
    (tmp_path / "a").write_text("foreign")
    with (
        pytest.raises(WriteError, match="File exists"),
        files.replacing(tmp_path / "a", exclusive=True) as file,
    ):
        file.write(b"ours")
    assert (tmp_path / "a").read_text() == "foreign" and len(list(tmp_path.iterdir())) == 1


def test_a_path_for_libraries_keeps_its_ending(tmp_path):
    with files.replacing_path(tmp_path / "a.npy") as path:
        assert path.suffix == ".npy"
        np.save(path, np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(WriteError, match=r"missing/a: cannot write \(No such file"):
        files.write_bytes(tmp_path / "missing" / "a", b"")


def test_only_leftovers_of_ended_processes_are_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = files.temporary(tmp_path / "x")
    other = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{ended.pid}."))
    foreign = mine.with_name(
        ".medjax-tmp.elsewhere." + mine.name.rsplit(".", 2)[1] + "." + "0" * 16
    )
    for path in (mine, other, foreign):
        path.write_text("")
    assert files.sweep(tmp_path) == [other]
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign])


def test_reserved_space_is_real(tmp_path):
    with open(tmp_path / "a", "w+b") as file:
        files.reserve(file, 1 << 20)
    assert (tmp_path / "a").stat().st_size == 1 << 20 and (
        tmp_path / "a"
    ).stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ä".encode("latin-1"), "another encoding"),
        (b"[" * 200_000, "nested too deeply"),
        (b"{,}", "damaged JSON"),
        (b"[1]" * 100, "too large"),
    ],
)
def test_bad_json_is_a_sentence(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_json(
            tmp_path / "a.json",
            error=DataError,
            limit=250_000 if b"{" in content or b"[[" in content else 250,
        )
    with pytest.raises(DataError, match="not a file"):
        files.read_json(tmp_path, error=DataError)


def test_bytes_with_a_byte_order_mark_are_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json(tmp_path / "a.json") == {}


def _holding(folder, what, seconds):
    """Another process that holds the lock of a folder for a while."""
    held = (
        f"with locks.lock({str(folder)!r}, {what!r}):\n print('held', flush=True)\n "
        f"time.sleep({seconds})"
    )
    code = f"import time\nfrom medjax import locks\n{held}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_refused_while_its_process_lives_and_taken_over_after(tmp_path):
    other = _holding(tmp_path, "training", 60)
    with (
        pytest.raises(UsageError, match=rf"in use; found process {other.pid} on .*\(training"),
        locks.lock(tmp_path, "evaluation"),
    ):
        pass
    other.kill()
    other.wait()
    with locks.lock(tmp_path, "evaluation"):
        assert json.loads((tmp_path / locks.LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("boot", "another"), ("started", "1")])
def test_a_lock_of_another_boot_or_an_earlier_process_is_stale(tmp_path, field, value):
    with locks.lock(tmp_path, "training"):
        old = json.loads((tmp_path / locks.LOCK).read_text()) | {field: value}
    (tmp_path / locks.LOCK).write_text(json.dumps(old))
    with locks.lock(tmp_path, "training"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", ["host", "namespace", "garbage"])
def test_a_lock_that_cannot_be_judged_is_respected(tmp_path, lock):
    with locks.lock(tmp_path, "training"):
        old = json.loads((tmp_path / locks.LOCK).read_text()) | {lock: "elsewhere"}
    (tmp_path / locks.LOCK).write_text("garbage" if lock == "garbage" else json.dumps(old))
    with pytest.raises(UsageError, match="delete"), locks.lock(tmp_path, "training"):
        pass
    assert (tmp_path / locks.LOCK).exists()


def test_waiting_for_a_lock(tmp_path):
    other, lines = _holding(tmp_path, "preparing", 0.5), []
    started = time.monotonic()
    with locks.lock(tmp_path, "preparing", wait=True, say=lines.append, every=0.05):
        assert (
            time.monotonic() - started > 0.2
            and len(lines) == 1
            and f"waiting for process {other.pid}" in lines[0]
        )
    other.wait()


def test_shown_escapes_what_a_terminal_would_obey():
    assert shown("a\x1b[2J\n\u202eb\udcff ü") == "a\\x1b[2J\\n\\u202eb\\udcff ü"
    assert "\\x1b" in str(DataError("bad", path="a\x1b[2J"))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_are_a_sentence_and_an_exit_code(tmp_path, number, code, word):
    program = (
        "import sys, time\nfrom medjax import files\nfrom medjax.border import guarded\n"
        f"def work():\n with files.replacing({str(tmp_path / 'a')!r}):\n  print('ready', "
        "flush=True)\n  time.sleep(60)\n"
        "sys.exit(guarded(work))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (
        process.returncode == code
        and word in err
        and err.count("\n") == 1
        and list(tmp_path.iterdir()) == []
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_within_the_garbage_collector_is_not_lost(number, code):
    """Python drops what a callback of the collector raises; jax has such a callback."""
    program = (
        "import gc, os, sys, time\nfrom medjax.border import guarded\n"
        "def callback(phase, info):\n    if phase == 'start':\n"
        f"        gc.callbacks.clear(); os.kill(os.getpid(), {int(number)}); time.sleep(0.01)\n"
        "def work():\n    gc.callbacks.append(callback)\n    gc.collect()\n    time.sleep(20)\n   "
        " return 0\n"
        "sys.exit(guarded(work))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=15
    )
    assert (
        done.returncode == code
        and done.stderr.startswith("medjax: ")
        and done.stderr.count("\n") == 1
    )
