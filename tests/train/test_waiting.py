"""Work that does not return to Python: its result, its errors, giving it up, signals meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medjax.train import waiting


@pytest.fixture
def blocked(monkeypatch):
    """Work that ends only when the test does."""
    monkeypatch.setattr(waiting, "GRACE", 0.25)
    end = threading.Event()
    yield end.wait
    end.set()
    for thread in threading.enumerate():
        if thread.name == waiting.NAME:
            thread.join(5)


def test_result_and_error_arrive():
    assert waiting.interruptibly(lambda: 7) == (True, 7)
    with pytest.raises(ZeroDivisionError):
        waiting.interruptibly(lambda: 1 // 0)
    assert not waiting.unfinished()


def test_unwanted_work_is_given_up_after_a_while(blocked):
    start = time.monotonic()
    assert waiting.interruptibly(blocked, lambda: True) == (False, None)
    assert 0.2 < time.monotonic() - start < 3
    assert waiting.unfinished()


def test_work_that_ends_in_time_is_kept(monkeypatch):
    monkeypatch.setattr(waiting, "GRACE", 5.0)
    assert waiting.interruptibly(lambda: time.sleep(0.2) or "done", lambda: True) == (True, "done")


def test_patience_begins_again_when_work_is_wanted(blocked):
    asked = iter([True, False, True, False, True, False] + [True] * 50)
    assert waiting.interruptibly(blocked, lambda: next(asked)) == (False, None)
    assert len(list(asked)) < 50  # the early doubts alone did not end it


def test_a_signal_is_heard_meanwhile(blocked):
    def heard(number, frame):
        raise InterruptedError(number)

    old = signal.signal(signal.SIGUSR1, heard)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(InterruptedError):
            waiting.interruptibly(blocked)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_outside_of_the_main_thread_work_is_simply_called():
    found = []

    def run():
        found.append(waiting.interruptibly(threading.current_thread, lambda: True))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(True, thread)]


def test_a_process_can_be_left_while_work_still_runs():
    code = (
        "import time\nfrom medjax.train import waiting\nwaiting.GRACE = 0.1\n"
        "waiting.interruptibly(lambda: time.sleep(60), lambda: True)\n"
        "print('given up', waiting.unfinished())\nwaiting.leave(75)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (75, "given up True\n")
