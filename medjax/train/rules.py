"""Rule lists: ordered (regex, value) pairs over parameter paths.

First match wins; a path that matches nothing is an error. Used for sharding, trainable groups,
learning-rate factors and weight decay. A path is the keys joined by "/", e.g.
"encoder/0/conv/kernel"; a pattern may match anywhere in it (`re.search`), so anchor with ^ and $ if
needed. A rule that matches no path is an error too, except the catch-all ".*": otherwise the leaves
of a misspelt "^encodr" would silently take the next rule.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from medjax.errors import TrainError

Rules = Sequence[tuple[str, Any]]
CATCH_ALL = ".*"


def path_name(keys: Sequence[Any]) -> str:
    """A jax key path as text: (DictKey("a"), SequenceKey(0)) -> "a/0"."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """The path of every leaf, in flattening order."""
    return [path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def assign(tree: Any, rules: Rules, what: str = "rule list", *, all_used: bool = True) -> Any:
    """The tree with every leaf replaced by the value of the first rule that matches its path.

    Args:
      tree: any pytree, usually parameters (possibly abstract).
      rules: (regex, value) pairs in order of precedence.
      what: names the list in error messages.
      all_used: whether a rule that matches no path is an error (off for a part of a tree that was
        checked as a whole).

    Raises: `TrainError` for an invalid pattern, listing the paths no rule matches, or listing the
      rules that match no path.
    """
    names = paths(tree)
    try:
        patterns = [re.compile(pattern) for pattern, _ in rules]
    except re.error as error:
        raise TrainError(f"{what}: invalid pattern", found=error.pattern, fix=str(error)) from error
    first = [next((i for i, p in enumerate(patterns) if p.search(name)), None) for name in names]
    if unmatched := [name for name, i in zip(names, first, strict=True) if i is None]:
        raise TrainError(
            f"{what}: no rule matches {_some(unmatched)}",
            found=[p for p, _ in rules],
            fix='add a rule, or end with the catch-all ".*"',
        )
    unused = [rules[i][0] for i in range(len(rules)) if i not in first and rules[i][0] != CATCH_ALL]
    if all_used and unused:
        raise TrainError(
            f"{what}: no parameter is left for {_some(unused)}",
            expected=f"a match among {_some(names)}",
            fix="correct the pattern",
        )
    return jax.tree.unflatten(jax.tree.structure(tree), [rules[i][1] for i in first])


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
