"""The border of both commands: errors and signals become one sentence and an exit code."""

import io
import os
import signal
import sys
import threading

import pytest

from medjax import border
from medjax.errors import DataError, Preempted, Terminated, UsageError


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no such verb", fix="see --help"), 2, "no such verb. Fix: see --help"),
        (DataError("truncated", path="a.nii"), 1, "a.nii: truncated"),
        (Preempted("saved"), 75, "saved"),
        (KeyboardInterrupt(), 130, f"interrupted; {border.AGAIN}"),
        (Terminated(), 143, f"stopped by SIGTERM; {border.AGAIN}"),
    ],
)
def test_one_sentence_and_a_code(capsys, error, code, said):
    assert border.guarded(raising(error)) == code
    assert capsys.readouterr().err == f"medjax: {said}\n"


def test_the_code_of_work_and_defects_pass_through():
    assert border.guarded(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        border.guarded(lambda: 1 // 0)


def test_sigterm_runs_what_is_to_be_cleaned_up(capsys):
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(signal.getsignal(signal.SIGTERM))  # a second one ends the process

    assert border.guarded(work) == 143 and cleaned == [signal.SIG_DFL]
    assert "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_lost_in_a_finaliser_is_sent_again():
    class Unlucky:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # the handler raises here, where Python drops exceptions
                pass

    def work():
        Unlucky()
        signal.pause()

    hook = sys.unraisablehook
    assert border.guarded(work) == 143 and sys.unraisablehook is hook


def test_handlers_of_others_stay(monkeypatch):
    def own(number, frame):
        raise AssertionError

    old = signal.signal(signal.SIGTERM, own)
    try:
        assert border.guarded(lambda: signal.getsignal(signal.SIGTERM) is own) is True
    finally:
        signal.signal(signal.SIGTERM, old)


def test_in_another_thread_signals_are_left_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(border.guarded(lambda: 5)))
    thread.start()
    thread.join()
    assert found == [5]


def test_nobody_reads_the_output(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert border.guarded(raising(BrokenPipeError())) == 1
        out.write("lost")  # goes nowhere, so that flushing it at the end cannot fail
    assert (tmp_path / "out").read_text() == ""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    border.say("nobody hears this")


def test_unfinished_work_ends_the_process(monkeypatch):
    left = []
    monkeypatch.setattr(border.waiting, "unfinished", lambda: True)
    monkeypatch.setattr(border.waiting, "leave", left.append)
    assert border.guarded(raising(Preempted("saved"))) == 75 and left == [75]
