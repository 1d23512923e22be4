"""The figure of docs/report.md: the page of an evaluation with numbered marks.

    PATH=FOLDER_OF_CHROMIUM:$PATH python docs/figures/report.py RUN docs/pictures/report.png

The page is RUN/evaluation/report.html as medjax wrote it, opened in a headless chromium at 1280
pixels; a script that is added to a copy sets the marks, and leaves out all but the first tables
and pictures so that the figure stays short. The folder is shown without what is above it.
"""

import html
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH, SHOWN, COLOURS = 1280, 900, 256  # pixels of the page, of the figure; its palette
MARKS = (  # elements of the page, in the order of the explanations in docs/report.md
    ".facts",
    "#scores .scroll",
    "#viewer .controls",
    "#viewer #stage",
    "#plots figure",
    "#cases .scroll",
    "#worst figure",
)
FEWER = (  # elements of which only the first stay
    ("#scores h3", 1),
    ("#scores .scroll", 1),
    ("#plots figure", 1),
    ("#cases tbody tr", 4),
    ("#worst figure", 3),
    ("footer > *", 0),
)
SCRIPT = """
<style>.mark {{ position: absolute; z-index: 99; width: 26px; height: 26px; border-radius: 50%;
  background: #b3261e; color: white; font: 700 15px/26px sans-serif; text-align: center; }}</style>
<script>
for (const [what, most] of {fewer}) [...document.querySelectorAll(what)].slice(most)
  .forEach(e => e.remove());
{marks}.forEach((what, k) => {{
  const box = document.querySelector(what).getBoundingClientRect();
  const mark = document.createElement('div');
  Object.assign(mark, {{className: 'mark', textContent: k + 1}});
  mark.style.left = Math.max(0, box.left + scrollX - 25) + 'px';
  mark.style.top = box.top + scrollY - 2 + 'px';
  document.body.append(mark);
}});
</script>
"""


def marked(page: str) -> str:
    """The text of a report with the script that shortens and marks it."""
    script = SCRIPT.format(fewer=[list(pair) for pair in FEWER], marks=list(MARKS))
    head, end, rest = page.rpartition("</body>")
    if not end:
        raise ValueError("not a report: it has no body")
    return f"{head}{script}{end}{rest}"


def draw(run: Path, out: Path) -> None:
    """Writes the figure of a run folder; needs chromium on the PATH."""
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from tests.support.browser import Page, executable

    if executable() is None:
        raise SystemExit("no chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "report.html"
        page = (run / "evaluation" / "report.html").read_text(encoding="utf-8")
        page = page.replace(html.escape(str(run.resolve())), f"runs/{run.name}")
        copy.write_text(marked(page), encoding="utf-8")
        with Page(copy, Path(folder) / "profile", (WIDTH, 1000)) as opened:
            opened.wait_for("document.documentElement?.dataset.viewer", 300)
            shot = opened.screenshot(Path(folder) / "page.png", "html")
        picture = Image.open(shot).convert("RGB")
        size = SHOWN, round(picture.height * SHOWN / picture.width)
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small = small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        out.parent.mkdir(parents=True, exist_ok=True)
        small.save(out, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
