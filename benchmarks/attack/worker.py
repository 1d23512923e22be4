"""The process that runs rows: reads their names from stdin, writes what it sees as JSON lines to
the pipe named by its argument.

A fault may kill it; the parent then knows the row and the last variant seen, and starts another.
"""

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path


def main(pipe: int, folder: Path, keep: bool) -> None:
    """Runs rows until stdin ends."""
    from absl import flags

    from benchmarks.attack import surfaces
    from benchmarks.attack.harness import Site

    surfaces.load()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's threads look at them
    (folder / "shared").mkdir(parents=True, exist_ok=True)
    with os.fdopen(pipe, "w", buffering=1) as out:
        for line in sys.stdin:
            name, started = line.strip(), time.perf_counter()
            top = folder / "rows" / f"{name}-{os.getpid()}"
            site = Site(top, folder / "shared")
            try:
                for seen in surfaces.ROWS[name].run(site):
                    out.write(
                        json.dumps(
                            {
                                "variant": seen.variant,
                                "ok": None if seen.ok is None else bool(seen.ok),
                                "seen": seen.seen,
                            }
                        )
                        + "\n"
                    )
            except Exception:
                text = traceback.format_exc().strip().splitlines()
                out.write(
                    json.dumps(
                        {
                            "variant": "the judge itself",
                            "ok": False,
                            "seen": " | ".join(t.strip() for t in text[-6:]),
                        }
                    )
                    + "\n"
                )
            out.write(json.dumps({"done": time.perf_counter() - started}) + "\n")
            if not keep:
                shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "keep")
