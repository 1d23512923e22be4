"""The web site of the documentation: `./launch.sh docs`.

The source folder is the repository, so that a link from one Markdown file to another works on the
site and in the repository alike. Pages of the reference are completed from the code
(`docs/reference.py`); notebooks are shown if there are any, and never executed here.
"""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # building pages needs no accelerator
os.environ["COLUMNS"] = "100"  # width of the usage lines


def _reference():
    place = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def _notebooks() -> list[str]:
    """Notebooks, one file of each: the executed one if there is one."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    names = {path.stem for path in found}
    found += [p for p in sorted((ROOT / "notebooks").glob("*.md")) if p.stem not in names]
    return [path.relative_to(ROOT).as_posix() for path in found if path.stem != "README"]


project, author, copyright = "medjax", "The medjax maintainers", "The medjax maintainers"
extensions = ["myst_nb"]
root_doc = "docs/index"
NOTEBOOKS = _notebooks()
include_patterns = [
    "docs/*.md",
    "benchmarks/*.md",
    "benchmarks/results/*.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *NOTEBOOKS,
]
exclude_patterns = [".*", "runs", "build", "dist"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "pydata_sphinx_theme"
html_title = "medjax"
html_static_path = ["site"]
html_css_files = ["site.css"]
templates_path = ["site/templates"]
html_sidebars = {"**": ["contents.html"]}  # all pages, on every page
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "medjax"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}

TO_START = '<!DOCTYPE html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
NOTEBOOK_LIST = """
```{{toctree}}
:caption: Notebooks
:hidden:

{lines}
```
"""


def _completed(app, docname: str, source: list[str]) -> None:
    """Adds what is made from the code to a page, and the notebooks to the start page."""
    if docname in _completed.pages:
        source[0] += "\n" + _completed.pages[docname]()
    if docname == root_doc and NOTEBOOKS:
        lines = "\n".join("/" + path.rsplit(".", 1)[0] for path in NOTEBOOKS)
        source[0] += NOTEBOOK_LIST.format(lines=lines)


_completed.pages = _reference().PAGES


def _start(app, failed: object) -> None:
    """The folder of the site opens at its start page."""
    if not failed and app.builder.format == "html":
        (Path(app.outdir) / "index.html").write_text(TO_START, encoding="utf-8")


def setup(app) -> dict:
    """Connects both."""
    app.connect("source-read", _completed)
    app.connect("build-finished", _start)
    return {"parallel_read_safe": True}
