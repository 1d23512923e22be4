"""The rules of the code base, read from the sources: imports run one way, nothing is pickled, files
stay readable, tests mirror packages.
"""

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

# A package may import what stands before it. Modules at the top level belong to "base" or to
# "border".
ORDER = (
    "base",
    "scans",
    "corpora",
    "prepare",
    "sample",
    "augment",
    "phantom",
    "prompts",
    "models",
    "losses",
    "tasks",
    "train",
    "infer",
    "metrics",
    "report",
    "weights",
    "runs",
    "border",
)
BASE = {
    "__init__",
    "colours",
    "decision",
    "errors",
    "files",
    "labels",
    "linear",
    "lines",
    "locks",
    "plugins",
    "recipes",
    "registry",
    "topology",
}
BORDER = {"api", "border", "cli", "commands", "experiment", "main", "show"}
HOST_ONLY = (
    "scans",
    "corpora",
    "prepare",
    "sample",
    "phantom",
    "prompts",
    "metrics",
    "report",
)  # no accelerator library
OUTSIDE = ("medjax_verbs", "configs", "data_pipelines", "tests", "benchmarks", "docs")
MOST_LINES, MOST_LINES_OF_A_FOLDER = 500, 5000


@cache
def _modules(repository: Path, top: str = "medjax") -> dict[str, Path]:
    """Dotted name -> source; a package has the name of its folder."""
    found = {}
    for path in sorted((repository / top).rglob("*.py")):
        parts = path.relative_to(repository).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _all(repository: Path) -> dict[str, Path]:
    """The modules of the core and of the verbs beside it."""
    return _modules(repository) | _modules(repository, "medjax_verbs")


@cache
def _tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


def _package(module: str) -> str:
    """medjax.scans.nifti -> scans; medjax.labels -> base; medjax.main -> border."""
    top = [*module.split("."), "__init__"][1]
    return "base" if top in BASE else "border" if top in BORDER else top


def _imports(path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at any depth, with its line."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules else node.module), node.lineno


def test_imports_run_one_way(repository):
    modules, wrong = _modules(repository), []
    for module, path in modules.items():
        here = ORDER.index(_package(module))
        for name, line in _imports(path, modules):
            if name.split(".")[0] in OUTSIDE:
                wrong.append(f"{module}:{line} imports {name}")
            if name.split(".")[0] == "medjax" and ORDER.index(_package(name)) > here:
                wrong.append(f"{module}:{line} ({ORDER[here]}) imports {name}")
    assert wrong == []


def test_verbs_beside_the_core_import_the_core_and_nothing_else_of_the_repository(repository):
    verbs = _modules(repository, "medjax_verbs")
    assert len(verbs) > 4
    wrong = [
        f"{module}:{line} imports {name}"
        for module, path in verbs.items()
        for name, line in _imports(path, _all(repository))
        if name.split(".")[0] in set(OUTSIDE) - {"medjax_verbs"}
        or name.startswith(("medjax.commands", "medjax.cli", "medjax.main"))
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others(repository):
    modules = _all(repository)
    graph = {
        module: {name for name, _ in _imports(path, modules) if name in modules and name != module}
        for module, path in modules.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(modules)


def test_prediction_needs_no_training_code(repository):
    modules = _modules(repository)
    wrong = [
        f"{module}:{line} imports {name}"
        for module, path in modules.items()
        if _package(module) == "infer"
        for name, line in _imports(path, modules)
        if name.startswith(("medjax.train", "medjax.tasks", "medjax.losses"))
    ]
    assert wrong == []


def test_models_and_losses_see_no_labels_corpora_or_files(repository):
    modules, wrong = _modules(repository), []
    for package in ("models", "losses"):
        for module, path in modules.items():
            if _package(module) != package:
                continue
            for name, line in _imports(path, modules):
                foreign = name.startswith("medjax.") and _package(name) not in (package, "base")
                # names and shapes of prompts, which a network declares as its inputs
                foreign = foreign and not name.startswith("medjax.prompts.types")
                if foreign or name.startswith(("medjax.labels", "medjax.files")):
                    wrong.append(f"{module}:{line} imports {name}")
                if name.split(".")[0] in (
                    "nibabel",
                    "ml_collections",
                    "tensorstore",
                    "pathlib",
                    "os",
                ):
                    wrong.append(f"{module}:{line} imports {name}")
    assert wrong == []


def test_config_objects_stop_at_the_border(repository):
    modules = _modules(repository)
    users = {
        m
        for m, p in modules.items()
        for n, _ in _imports(p, modules)
        if n.split(".")[0] == "ml_collections"
    }
    assert users <= {"medjax.main"}


def test_packages_for_the_host_need_no_accelerator_library(repository):
    modules = _modules(repository)
    wrong = [
        f"{module}:{line} imports {name}"
        for module, path in modules.items()
        if _package(module) in HOST_ONLY
        for name, line in _imports(path, modules)
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "word", ["pickle", "eval(", "exec(", "os.system", "shell=True", "extractall"]
)
def test_nothing_is_pickled_or_executed(repository, word):
    found = []
    for path in _all(repository).values():
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        code = code.replace("allow_pickle=False", "").replace("literal_eval(", "")
        if word in code:
            found.append(str(path))
    assert found == []


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def test_every_public_name_of_a_module_has_a_docstring(repository):
    bare = []
    for module, path in _all(repository).items():
        tree = _tree(path)
        if not ast.get_docstring(tree):
            bare.append(module)
        bare += [
            f"{module}.{n.name}"
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef)
            and not n.name.startswith("_")
            and not ast.get_docstring(n)
        ]
    assert bare == []


def test_files_and_folders_stay_readable(repository):
    lines = {
        module: len(path.read_text().splitlines()) for module, path in _all(repository).items()
    }
    assert {module: n for module, n in lines.items() if n > MOST_LINES} == {}
    folders: dict[Path, int] = {}
    for module, path in _all(repository).items():
        folders[path.parent] = folders.get(path.parent, 0) + lines[module]
    assert {str(folder): n for folder, n in folders.items() if n > MOST_LINES_OF_A_FOLDER} == {}


def test_tests_mirror_the_packages(repository):
    modules = _modules(repository)
    packages = {_package(m) for m in modules} - {"base", "border"} | {"commands"}
    others = {"support", "old", "golden"} | set(OUTSIDE)
    folders = {
        p.name for p in (repository / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"
    }
    assert folders - others == packages


def test_every_module_is_imported_by_a_test(repository):
    modules, used = _all(repository), set()
    for path in (repository / "tests").rglob("*.py"):
        used |= {name for name, _ in _imports(path, modules)}
    missing = [m for m, path in modules.items() if path.name != "__init__.py" and m not in used]
    assert missing == []


def test_every_imported_name_exists(repository):
    """Also within functions, which a test may never call: a name that moved is noticed here."""
    modules, wrong = _all(repository), []
    for folder in ("medjax", *OUTSIDE):
        for path in sorted((repository / folder).rglob("*.py")):
            for node in ast.walk(_tree(path)):
                if not (isinstance(node, ast.ImportFrom) and node.module in modules):
                    continue
                known = _bound(modules[node.module])
                place = f"{path.relative_to(repository)}:{node.lineno}"
                wrong += [
                    f"{place} imports {node.module}.{alias.name}"
                    for alias in node.names
                    if alias.name not in known and f"{node.module}.{alias.name}" not in modules
                ]
    assert wrong == []


@cache
def _bound(path: Path) -> set[str]:
    """The names that a module binds outside of functions and classes."""
    names, work = set(), list(_tree(path).body)
    while work:
        node = work.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        work.extend(ast.iter_child_nodes(node))
    return names
