"""The rules of the house, read from the sources: imports run one way, nothing is pickled, files stay readable."""

import ast
from pathlib import Path

import pytest

ROOMS = ("base", "data", "models", "losses", "train", "infer", "metrics", "port", "build", "experiment", "border")
BASE, BORDER = {"errors", "files", "locks", "labels", "topology", "__init__"}, {"main", "cli", "commands", "api", "border"}
WITH_JAX = {"augment", "spatial", "intensity", "turns"}  # the part of the data room that runs on the device


def _room(module: str) -> str:
    """medjax.scans.nifti -> data; medjax.labels -> base; medjax.main -> border."""
    parts = module.split(".")
    top = parts[1] if len(parts) > 1 else "__init__"
    return "base" if top in BASE or top.startswith("__") else "border" if top in BORDER else top


def _imports(path: Path):
    """Every module a file imports, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}" if node.module == "medjax" else node.module, node.lineno) for alias in node.names)


def _sources(root: Path):
    return sorted((root / "medjax").rglob("*.py"))


def test_imports_run_one_way(repository):
    wrong = []
    for path in _sources(repository):
        module = ".".join(path.relative_to(repository).with_suffix("").parts)
        here = ROOMS.index(_room(module))
        for name, line in _imports(path):
            if name.split(".")[0] in ("configs", "data_pipelines", "tests"):
                wrong.append(f"{module}:{line} imports {name}")
            if name.split(".")[0] == "medjax" and ROOMS.index(_room(name)) > here:
                wrong.append(f"{module}:{line} ({ROOMS[here]}) imports {name}")
    assert wrong == []


def test_models_and_losses_see_no_labels_corpora_or_files(repository):
    allowed = {"models": {"models", "base"}, "losses": {"losses", "base"}}
    wrong = []
    for room, may in allowed.items():
        for path in sorted((repository / "medjax" / room).rglob("*.py")):
            for name, line in _imports(path):
                if name.startswith("medjax.") and (_room(name) not in may or name.startswith("medjax.labels")):
                    wrong.append(f"{path.name}:{line} imports {name}")
                if name.split(".")[0] in ("nibabel", "ml_collections", "tensorstore", "pathlib", "os"):
                    wrong.append(f"{path.name}:{line} imports {name}")
    assert wrong == []


def test_config_objects_stop_at_build(repository):
    users = {p.name for p in _sources(repository) for name, _ in _imports(p) if name.split(".")[0] == "ml_collections"}
    assert users <= {"main.py"}


def test_the_data_room_needs_no_accelerator_library(repository):
    wrong = [
        f"{p.name}:{line} imports {name}"
        for p in sorted((repository / "medjax" / "data").rglob("*.py"))
        if p.stem not in WITH_JAX
        for name, line in _imports(p)
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax")
    ]
    assert wrong == []


@pytest.mark.parametrize("word", ["pickle", "eval(", "exec(", "os.system", "shell=True", "extractall"])
def test_nothing_is_pickled_or_executed(repository, word):
    allowed = {"allow_pickle=False"}
    found = []
    for path in _sources(repository):
        tree = ast.parse(path.read_text())
        code = ast.unparse(_without_docstrings(tree))
        for good in allowed:
            code = code.replace(good, "")
        if any(word in line and not line.strip().startswith("#") for line in code.splitlines() if "literal_eval" not in line):
            found.append(path.name)
    assert found == []


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def test_every_public_name_of_a_module_has_a_docstring(repository):
    bare = []
    for path in _sources(repository):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            bare.append(f"{path.name}: module")
        bare += [
            f"{path.name}: {n.name}"
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_") and not ast.get_docstring(n)
        ]
    assert bare == []


def test_files_stay_readable(repository):
    long = {str(p.relative_to(repository)): n for p in _sources(repository) if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
