"""Packages of a checkout with their files, lines and imports, circles of imports, and the way of a
scan to its mask and of a case to its gradient, in files and calls. Prints Markdown.

    git worktree add --detach OLD 337855a
    python -m benchmarks.layout OLD . [--ways]

The listing reads the sources only. `--ways` runs the version of each checkout on its own phantom
corpora and counts the Python functions of medjax that are entered (see
`benchmarks/one_version.py`): during one `medjax predict` of one scan, and during trainings of one
and of three steps on a prepared store; half of their difference is a further step, the drawing of
its cases included.
"""

import ast
import graphlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness, versions

CODE = ("medjax", "medjax_verbs", "configs", "data_pipelines", "benchmarks", "tests")


def modules(checkout: Path, top: str = "medjax") -> dict[str, Path]:
    """Dotted name -> source; a package has the name of its folder."""
    found = {}
    for path in sorted((checkout / top).rglob("*.py")):
        parts = path.relative_to(checkout).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def package(module: str, known: dict[str, Path]) -> str:
    """The package below medjax that a module belongs to; "(top)" for a module of the top level."""
    parts = module.split(".")
    inner = len(parts) > 2 or (len(parts) == 2 and known[module].name == "__init__.py")
    return parts[1] if inner else "(top)"


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """(module of `known`, whether at the top of the file) for everything that a file imports."""
    tree = ast.parse(path.read_text())
    first = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                inner if (inner := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from ((name, id(node) in first) for name in names if name in known)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle after another; an edge of each is taken out before the next is looked for."""
    graph, found = {name: set(to) for name, to in graph.items()}, []
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
            return found
        except graphlib.CycleError as error:
            circle = list(reversed(error.args[1]))
            found.append(circle)
            graph[circle[0]].discard(circle[1])


def listing(checkout: Path) -> str:
    """Packages, edges and circles of a checkout."""
    known = modules(checkout)
    graph = {m: {n for n, _ in imports(p, known) if n != m} for m, p in known.items()}
    edges: dict[str, dict[str, int]] = {}
    count: dict[str, list[int]] = {}
    for module, path in known.items():
        own = package(module, known)
        count.setdefault(own, []).append(lines(path))
        for other in graph[module]:
            to = package(other, known)
            if to != own:
                row = edges.setdefault(own, {})
                row[to] = row.get(to, 0) + 1
    rows = [
        [
            name,
            len(sizes),
            f"{sum(sizes):,}",
            f"{max(sizes):,}",
            ", ".join(f"{to} {n}" for to, n in sorted(edges.get(name, {}).items())),
        ]
        for name, sizes in sorted(count.items())
    ]
    packages = {name: set(row) - {"(top)"} for name, row in edges.items() if name != "(top)"}
    top_level = {m: {n for n, top in imports(p, known) if top and n != m} for m, p in known.items()}
    text = [harness.table(["package", "files", "lines", "longest", "imports"], rows, (1, 2, 3)), ""]
    for what, found in (
        ("modules, imports within functions included", circles(graph)),
        ("modules, imports at the top of a file alone", circles(top_level)),
        ("packages", circles(packages)),
    ):
        shown = "; ".join(" -> ".join(circle) for circle in found)
        text.append(f"- circles of {what}: {shown or 'none'}")
    folders = {name: list(modules(checkout, name).values()) for name in CODE}
    text += ["", "Python lines: "]
    text[-1] += ", ".join(
        f"{name} {sum(map(lines, paths)):,} in {len(paths)} files"
        for name, paths in folders.items()
        if paths
    )
    return "\n".join(text)


def ways(checkout: Path, folder: Path) -> dict[str, dict]:
    """ "predict", "train" (one step) and "step" (a further one) -> files, functions, calls.

    `folder`: what the version has made there (`versions.run(checkout, folder, "make")`).
    """
    found = {"predict": versions.run(checkout, folder, "predict", trace=True)}
    one, three = (
        versions.run(checkout, folder, "step", trace=True, steps=steps) for steps in (1, 3)
    )
    found["train"] = one
    found["step"] = {"calls": (three["calls"] - one["calls"]) / 2}
    return found


def main() -> None:
    """Prints."""
    parser = harness.parser(__doc__, ways=harness.flag(False, help="run and count, too"))
    parser.add_argument("checkouts", nargs="+", type=Path)
    given = parser.parse_args()
    for checkout in given.checkouts:
        print(f"## {checkout}\n\n{listing(checkout)}\n", flush=True)
    if not given.ways:
        return
    names = {
        "predict": "one scan to its mask: `medjax predict`",
        "train": "a training of one step on a prepared store",
        "step": "a further step: a case to its gradient",
    }
    rows = []
    for checkout in given.checkouts:
        with tempfile.TemporaryDirectory(prefix="layout-") as root:
            versions.run(checkout.resolve(), Path(root), "make")
            counted = ways(checkout.resolve(), Path(root))
        for way, found in counted.items():
            cells = [found.get(k, "") for k in ("files", "functions", "calls", "opened")]
            rows.append([names[way], checkout, *cells])
            print(f"<!-- {rows[-1]} -->", flush=True)
    head = ["way", "checkout", "files", "functions", "calls", "times the scan or store is opened"]
    print(
        "\n"
        + harness.table(
            head, sorted(rows, key=lambda r: list(names.values()).index(r[0])), (2, 3, 4, 5)
        )
    )


if __name__ == "__main__":
    main()
