"""An interruption at any moment ends work on many cases, and the next call works."""

import subprocess
import sys

INTERRUPTED = """
import faulthandler, random, signal, time
from medjax.corpora.cases import each
from medjax.corpora.inputs import Case

faulthandler.dump_traceback_later(40, exit=True)
def heard(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, heard)
cases, delays = [Case(str(i), ("absent",)) for i in range(12)], random.Random(0)
ended = {"whole": 0, "interrupted": 0}
for _ in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-5, 4e-3))
        found = each(lambda case: time.sleep(3e-4), cases, workers=4, needs=lambda case: 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        ended["whole"] += len(found) == 12
    except KeyboardInterrupt:
        ended["interrupted"] += 1
print(ended["whole"], ended["interrupted"])
"""


def test_no_moment_of_an_interruption_leaves_the_call_waiting(repository):
    """Within `threading.Condition` an exception of a handler leaves a lock taken: with a pool in
    the interrupted thread, the call then never ended.
    """
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, interrupted = map(int, done.stdout.split())
    assert whole + interrupted == 400 and interrupted > 40, (whole, interrupted)
