"""The notebooks: scripts in percent format, of which the .ipynb files are made.

    python notebooks/convert.py            writes NAME.ipynb beside every NAME.py
    python notebooks/convert.py --check    exit code 1 if one of them does not agree with its script

In: `# %%` begins a cell of code, `# %% [markdown]` one of text (lines behind `# `), as jupytext has
them. Out: nbformat 4.5 without outputs. A script runs as it is: `python notebooks/NAME.py`.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = "medjax/medjax"  # of the Colab badges
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def scripts() -> list[Path]:
    """The scripts, by name."""
    return sorted(path for path in HERE.glob("*.py") if path.name != Path(__file__).name)


def cells(text: str) -> list[tuple[str, str]]:
    """("markdown" or "code", content) of every cell of a script."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            found.append(("markdown" if "[markdown]" in line else "code", []))
        elif found:
            found[-1][1].append(line)
    return [(kind, _content(kind, lines)) for kind, lines in found]


def _content(kind: str, lines: list[str]) -> str:
    if kind == "markdown":
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return "\n".join(lines).strip("\n")


def notebook(path: Path) -> str:
    """The text of the .ipynb file of a script, with a badge that opens it in Colab."""
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks"
    badge = f"[![Open in Colab]({BADGE})]({link}/{path.stem}.ipynb)"
    made = []
    for k, (kind, content) in enumerate([("markdown", badge), *cells(path.read_text("utf-8"))]):
        cell = {"cell_type": kind, "id": f"cell-{k}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | {"source": content.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    facts = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": facts, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main(argv: list[str]) -> int:
    """Writes or checks; returns the exit code."""
    wrong = []
    for path in scripts():
        target, text = path.with_suffix(".ipynb"), notebook(path)
        if argv == ["--check"]:
            same = target.is_file() and target.read_text("utf-8") == text
            wrong += [] if same else [target.name]
        else:
            target.write_text(text, encoding="utf-8")
    if wrong:
        print(f"not made of their scripts: {', '.join(wrong)}; run python notebooks/convert.py")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
