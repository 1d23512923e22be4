"""The files that a prediction will write, checked before anything is computed.

In: cases, an output folder and what is to be written. Out: the cases that can be done, records of
those that cannot, or a `UsageError`: names that clash, a file that medjax did not write, an input
that would be replaced, a folder that refuses.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medjax import files as disk
from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case
from medjax.errors import PredictError, UsageError, shown
from medjax.infer import owned
from medjax.infer.names import file_stems

PAGE = "report.html"
_OF_THE_CALL = re.compile(
    r"(run|statistics)(_part.*)?"
)  # names that the files of a whole call have


class Checked(NamedTuple):
    """What `check` found: the cases that can be done, and failure records of those whose file names
    would be too long.
    """

    cases: list[Case]
    failed: list[dict]


def of_case(case: str, files: Any, classes: Sequence[str], maps: Sequence[str]) -> list[str]:
    """Every file of a case, relative to the output folder; its sidecar last.

    Args:
      files: a `cases.Files`. classes: those that are predicted. maps: names of the uncertainty
        maps.
    """
    names = [f"{case}.nii.gz"]
    if files.one_file_per_class:
        names += [f"{case}/{stem}.nii.gz" for stem in file_stems(classes)]
    names += [f"{case}_{name}.nii.gz" for name in maps]
    if files.probabilities:
        names.append(f"{case}_prob.npz")
    return [*names, *(f"{case}{ending}" for ending in files.endings), f"{case}.json"]


def of_call(files: Any, page: bool) -> list[str]:
    """The files that a whole call writes beside those of its cases."""
    names = [files.manifest]
    if files.statistics:
        names.append(files.table)
    return [*names, PAGE] if page else names


def check(
    cases: Sequence[Case],
    folder: Path,
    files: Any,
    classes: Sequence[str],
    maps: Sequence[str],
    *,
    mine: Sequence[Case] | None = None,
    overwrite: bool = False,
    page: bool = False,
) -> Checked:
    """Makes the output folder, if all files can be written.

    Args:
      cases: of all calls that share the work. mine: those of this call; default all.
      files, classes, maps: see `of_case`. overwrite: also replace files that medjax did not write.
        page: report.html is written as well.

    Returns: `Checked`, of `mine`. Raises: `UsageError`.
    """
    mine = cases if mine is None else mine
    if not mine:
        raise UsageError("no cases to predict", path=folder)
    _check_names(cases)
    planned = {case.name: of_case(case.name, files, classes, maps) for case in cases}
    too_long = {name: long for name, found in planned.items() if (long := _too_long(found))}
    call = of_call(files, page)
    inputs = _inputs(cases)
    real = Path(os.path.realpath(folder))
    for case in mine:
        _spare_inputs(folder, real, planned[case.name], inputs)
    _spare_inputs(folder, real, call, inputs)
    exact = make_folder(folder)
    _check_clashes(
        {name: found for name, found in planned.items() if name not in too_long}, call, exact
    )
    earlier = manifests(folder)
    for case in mine:
        if case.name not in too_long:
            ours = known(folder, case.name, earlier)
            owned.refuse_foreign(
                folder, planned[case.name], ours.__contains__, overwrite=overwrite, what=_what(case)
            )
    owned.refuse_foreign(
        folder,
        call,
        lambda name: _is_of_call(folder, name, earlier),
        overwrite=overwrite,
        what="the prediction",
    )
    disk.sweep(folder)
    for case in mine if files.one_file_per_class else ():
        disk.sweep(folder / case.name)
    failed = [
        failure(case, _refusal(folder, case, too_long[case.name]))
        for case in mine
        if case.name in too_long
    ]
    return Checked([case for case in mine if case.name not in too_long], failed)


def manifests(folder: Path) -> dict[str, dict]:
    """Name -> content of every manifest of ours in a folder: run.json, and run_part0of2.json and
    the like.
    """
    names = [p.name for p in sorted(folder.glob("run*.json"))] if folder.is_dir() else []
    return {
        name: found for name in names if (found := owned.document(folder / name, "predictions"))
    }


def known(folder: Path, case: str, earlier: Mapping[str, dict]) -> set[str]:
    """The files of a case that medjax wrote, as its sidecar or a manifest lists them."""
    side = owned.sidecar(folder, case)
    if side is not None:
        return {f"{case}.json", *side["files"], *side["earlier"]}
    found: set[str] = set()
    for manifest in earlier.values():
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            found.update(
                name for name in manifest["cases"][case]["outputs"] if name != f"{case}.json"
            )
    return found


def check_report(
    path: Path, folder: Path, cases: Sequence[Case], *, overwrite: bool = False
) -> None:
    """`UsageError` if the manifest cannot be written to a path of the user's choice as well; makes
    its folder.
    """
    _spare_inputs(path.parent, Path(os.path.realpath(path.parent)), [path.name], _inputs(cases))
    for case in cases:
        if Path(os.path.realpath(path)) == Path(os.path.realpath(folder)) / f"{case.name}.json":
            raise UsageError(
                "the manifest would overwrite the sidecar of a case",
                path=path,
                fix="choose another name for --report",
            )
    make_folder(path.parent)
    owned.refuse_document(path, "predictions", overwrite=overwrite, what="the manifest")


def _what(case: Case) -> str:
    return f"the prediction of {shown(case.name)}"


def _check_names(cases: Sequence[Case]) -> None:
    names: set[str] = set()
    for case in cases:
        reason = disk.unusable(case.name)
        if reason and "longer than" not in reason:
            raise UsageError(
                f"unusable case name: {reason}",
                found=repr(case.name)[:120],
                expected="a plain name, without folders",
            )
        if _OF_THE_CALL.fullmatch(case.name):
            raise UsageError(
                "unusable case name: the files of the whole call are named so",
                found=case.name,
                fix="rename the scan, or name it in a .csv",
            )
        if case.name in names:
            raise UsageError(
                f"case name {case.name!r} occurs twice",
                fix="rename the scans, or name the cases in a .csv",
            )
        names.add(case.name)


def _too_long(names: Sequence[str]) -> str:
    """The first file name that is too long for a file system, or an empty text."""
    return next(
        (
            part
            for name in names
            for part in name.split("/")
            if len(os.fsencode(part)) > disk.NAME_BYTES
        ),
        "",
    )


def _refusal(folder: Path, case: Case, name: str) -> PredictError:
    return PredictError(
        "a file name would be too long",
        path=folder,
        found=f"{len(os.fsencode(name))} bytes: {name[:40]}...",
        expected=f"at most {disk.NAME_BYTES}",
        fix="give the case a shorter name, e.g. in a .csv with columns name and image",
    )


def _inputs(cases: Sequence[Case]) -> dict[str | tuple[int, int], str]:
    """Real path and (device, inode) of every input -> the path as given."""
    found: dict[str | tuple[int, int], str] = {}
    for path in (path for case in cases for path in case.images):
        with contextlib.suppress(OSError, ValueError):
            found[os.path.realpath(path)] = path
            status = os.stat(path)
            found[status.st_dev, status.st_ino] = path
    return found


def _spare_inputs(folder: Path, real: Path, names: Sequence[str], inputs: Mapping) -> None:
    """`UsageError` if one of the names is an input, however it is spelled or linked."""
    for name in names:
        clash = inputs.get(str(real / name))
        if clash is None:
            with contextlib.suppress(OSError, ValueError):
                status = os.stat(folder / name)
                clash = inputs.get((status.st_dev, status.st_ino))
        if clash is not None:
            raise UsageError(
                "the prediction would overwrite its input",
                path=clash,
                fix="choose another output folder",
            )


def _check_clashes(planned: Mapping[str, Sequence[str]], call: Sequence[str], exact: bool) -> None:
    """`UsageError` if two files, or a file and a folder, would have one name."""

    def key(name: str) -> str:
        return name if exact else name.casefold()

    taken = {key(name): (name, "the whole call") for name in call}
    folders: dict[str, tuple[str, str]] = {}
    for case, names in planned.items():
        for name in names:
            other = taken.setdefault(key(name), (name, f"case {case!r}"))
            if other != (name, f"case {case!r}"):
                _clash(other, (name, f"case {case!r}"))
            if "/" in name:
                folders[key(name.split("/")[0])] = (name.split("/")[0], f"case {case!r}")
    for name, owner in folders.items():
        if name in taken:
            _clash(taken[name], owner)


def _clash(first: tuple[str, str], second: tuple[str, str]) -> None:
    raise UsageError(
        "two outputs would have one name",
        found=f"{first[0]} of {first[1]} and {second[0]} of {second[1]}",
        fix="rename one of the scans, or predict them into different folders",
    )


def make_folder(folder: Path) -> bool:
    """Makes a folder and tries to write into it; returns whether its file system tells upper and
    lower case apart.

    Raises: `UsageError` where either is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the output folder cannot be made ({error.strerror})",
            path=folder,
            fix="choose another folder",
        ) from error
    probe = disk.temporary(folder / "x")
    try:
        with open(probe, "xb") as file:
            file.write(b"x")
        return not os.path.lexists(probe.with_name(probe.name.swapcase()))
    except OSError as error:
        fix = "choose another folder, or free some space and correct its permissions"
        raise UsageError(
            f"the output folder cannot be written to ({error.strerror})", path=folder, fix=fix
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _is_of_call(folder: Path, name: str, earlier: Mapping[str, dict]) -> bool:
    """Whether a file of a whole call is one that medjax wrote."""
    if name == PAGE:
        return owned.is_marked(folder / name)
    if name.endswith(".csv"):
        manifest = earlier.get(f"run{name[len('statistics') : -len('.csv')]}.json", {})
        listed = manifest.get("files")
        return (
            name in listed
            if isinstance(listed, list)
            else bool(manifest.get("settings", {}).get("statistics"))
        )
    return name in earlier
