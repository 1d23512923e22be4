"""The web site is built without a warning, and leads from its start to every page."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

NEEDED = ("sphinx", "myst_nb", "pydata_sphinx_theme")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(repository, tmp_path):
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed (the extra 'docs')")
    copy = tmp_path / "copy"  # with a notebook, which the repository may not have

    def left_out(folder: str, names: list[str]) -> set[str]:
        top = {"runs", "build", "dist", "tests"} if folder == str(repository) else {"__pycache__"}
        return {name for name in names if name in top or name.startswith(".")}

    shutil.copytree(str(repository), copy, ignore=left_out)
    (copy / "notebooks").mkdir(exist_ok=True)
    (copy / "notebooks" / "a_test.md").write_text("# A notebook of a test\n\nText.\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-c", "docs", ".", str(tmp_path / "site")],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start = (tmp_path / "site" / "index.html").read_text()
    assert "docs/index.html" in start
    index = (tmp_path / "site" / "docs" / "index.html").read_text()
    links = set(re.findall(r'href="([\w./-]+\.html)', index))
    pages = {f"{path.stem}.html" for path in (repository / "docs").glob("*.md")} - {"index.html"}
    assert pages <= links and "../notebooks/a_test.html" in links
    for page, word in {
        "api": "medjax.stream",
        "commands": "--postprocess",
        "settings": "optim.lr",
        "concepts": "partial_labels.png",
    }.items():
        assert word in (tmp_path / "site" / "docs" / f"{page}.html").read_text(), page


def test_ci_builds_the_site_or_says_that_it_was_skipped(repository):
    script = (repository / ".ci" / "run").read_text()
    assert "if ./launch.sh docs install; then\n  ./launch.sh docs\nelse" in script
    assert "SKIPPED: the web site" in script
    assert "-W --keep-going" in (repository / "launch.sh").read_text()
    done = subprocess.run(
        ["git", "check-ignore", "-q", "build/docs/index.html"], cwd=repository, capture_output=True
    )
    assert done.returncode in (0, 128)  # ignored; 128: not a checkout
