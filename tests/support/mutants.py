"""Source with one wrong line, imported in place of the right one: to show that a test notices.

with mutated("medjax.models.parts.vit", "x = x + dense", "x = dense"):
    ...  # every import of medjax.models in here sees the wrong line
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads other text than the file's."""

    def __init__(self, name: str, path: str, text: str):
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str):
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a package, past import hooks: beartype mixes up classes of one name."""

    def __init__(self, package: str, loader: _Loader):
        self.package, self.loader = package, loader

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname == self.loader.name:
            return importlib.util.spec_from_file_location(
                fullname, self.loader.path, loader=self.loader
            )
        if not _inside(fullname, self.package):
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, path)


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def source(name: str) -> Path:
    """The file of a module."""
    return Path(importlib.util.find_spec(name).origin)


def _however_wrapped(code: str) -> re.Pattern:
    """A pattern for code, wherever a formatter may have broken its lines."""
    words, pattern = re.findall(r"\w+|[^\w\s]", code), ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        pattern += (r",?\s*" if word in ")]}" else "") + re.escape(word)
        pattern += r"\s+" if following and word[-1].isalnum() and following[0].isalnum() else r"\s*"
    return re.compile(pattern.removesuffix(r"\s*"))


@contextlib.contextmanager
def mutated(name: str, old: str, new: str, *also: str) -> Iterator[ModuleType]:
    """Imports the module with the text `old` replaced by `new`, and what lies beside it afresh.

    `medjax.models.parts.vit` renews all of `medjax.models`, `configs.m4oe` all of `configs`: the
    first package below `medjax`, or the first one; and the packages `also`, which took something
    from it at their import. Afterwards the old modules are back.

    Raises: `AssertionError` unless `old` occurs exactly once: a mutant that changes nothing shows
    nothing, and has to follow the source.
    """
    path = source(name)
    text = path.read_text()
    found = list(_however_wrapped(old).finditer(text))
    assert len(found) == 1, f"{path.name} has {len(found)} x {old!r}: update the mutant"
    parts = name.split(".")
    renewed = ".".join(parts[: 2 if parts[0] == "medjax" else 1])
    parent, _, child = renewed.rpartition(".")

    def is_renewed(module: str) -> bool:
        return any(_inside(module, package) for package in (renewed, *also))

    loaded = [module for module in sys.modules if is_renewed(module)]
    kept = {module: sys.modules.pop(module) for module in loaded}
    finder = _Finder(
        renewed, _Loader(name, str(path), text[: found[0].start()] + new + text[found[0].end() :])
    )
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for module in [module for module in sys.modules if is_renewed(module)]:
            del sys.modules[module]
        sys.modules.update(kept)
        if parent and renewed in kept:
            setattr(sys.modules[parent], child, kept[renewed])
