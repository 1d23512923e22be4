"""The network with its parameters as one serialised function (StableHLO, by `jax.export`).

It runs without the code of the model:

    f(image (b, *window, m) float32, corpus (b,) int32, modality (b,) int32,
      spacing_mm (b, 3) float32, one array per further entry that the network reads)
      -> logits (b, *window, c) float32

`pack`: a trained model -> bytes and the description of the call. `function`: an archive of kind
"function" -> a network function for `infer.model.Model`, and `reads` what it reads beside the image
(`models.context`). The first three are there whether the network reads them or not, as in archives
of earlier versions. Entries that a network derives from others are derived inside. The steps before
and after a window (spacing, normalisation, labels, protocol) are in the archive's JSON.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.errors import UsageError
from medjax.weights.formats.archive import Archive
from medjax.weights.formats.verification import Verifier, refused

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SIDE = 1 << 12  # voxels of a window along an axis
ENTRIES, DTYPES = 32, ("int32", "float32", "bool")
# the inputs of archives that do not list them
FIXED = [
    {"name": name, "shape": shape, "dtype": dtype, "moves": "case", "block": []}
    for name, shape, dtype in (
        ("corpus", [], "int32"),
        ("modality", [], "int32"),
        ("spacing_mm", [3], "float32"),
    )
]


def pack(net: Any, params: Any, platforms: Sequence[str]) -> tuple[bytes, dict]:
    """Serialises a network (`runs.build.Network`).

    Returns the bytes and the JSON-ready description of the call.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    from medjax.models import context as contexts

    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UsageError(f"unknown platform {unknown[0]!r}", expected=", ".join(PLATFORMS))

    given = {**contexts.DEFAULT, **contexts.sources(net.reads)}

    def logits(image: Any, *entries: Any) -> Any:
        context = contexts.of_batch(net.reads, dict(zip(given, entries, strict=True)))
        return net.apply(params, image, context)["logits"].astype(jnp.float32)

    def exported(batch: Any) -> Any:
        image = jax.ShapeDtypeStruct((batch, *net.patch, net.channels), jnp.float32)
        return export.export(jax.jit(logits), platforms=tuple(platforms))(
            image, *contexts.abstract(given, batch, net.patch).values()
        )

    try:
        found, batch = exported(export.symbolic_shape("b")[0]), "any"
    except Exception:  # a network that needs to know its batch
        found, batch = exported(1), 1
    classes = int(found.out_avals[0].shape[-1])
    calling = {
        "window": list(net.patch),
        "channels": net.channels,
        "classes": classes,
        "batch": batch,
        "platforms": list(platforms),
        "inputs": ["image (b, *window, channels) float32", *_texts(given)],
        "reads": [
            {
                "name": name,
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "moves": entry.moves,
                "block": list(entry.block),
            }
            for name, entry in given.items()
        ],
        "output": "logits (b, *window, classes) float32",
        "before": "canonical axes, crop, clip, normalise and resample as plan.json says; channels "
        'of its scheme "mask": 1 where above 0, else 0, by nearest neighbour',
        "after": "blend windows, resample to the scan, threshold or softmax, label values as "
        "labels.json says",
    }
    return bytes(found.serialize()), calling


def function(
    archive: Archive, platform: str = "", verifier: Verifier | None = None
) -> tuple[Callable, tuple[int, ...]]:
    """The function of an archive as (params, image, context) -> {"logits"}, and its window.

    It is first verified in a separate process (see `weights/formats/verification.py`), which takes
    some seconds in addition to its compilation there.

    Args:
      platform: target platform, as jax names it; default this process' own. verifier: a process to
        use for several functions.

    Raises: `ModelError` for bytes that are no such function, one with calls out of StableHLO, one
      whose shapes are not those declared, or one for other platforms; the function itself raises it
      if it cannot be compiled.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    declared, path = _declared(archive), archive.path
    with contextlib.ExitStack() as ends:
        (verifier or ends.enter_context(Verifier())).verify(archive.payload, declared, path)
    try:
        found = export.deserialize(bytearray(archive.payload))
    except Exception as error:  # the deserialiser raises many types for damaged bytes
        raise refused(f"{type(error).__name__}", path) from error

    platform = platform or jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(platform, {platform}) & set(found.platforms):
        raise refused(
            "it was exported for other platforms",
            path,
            found=", ".join(found.platforms),
            expected=platform,
        )

    def called(*arguments: Any) -> Any:
        try:
            return found.call(*arguments)
        except (
            Exception
        ) as error:  # shapes it was not made for, or a program that cannot be lowered
            raise refused(
                f"it cannot run here ({type(error).__name__}: {str(error)[:200]})", path
            ) from error

    names = tuple(entry["name"] for entry in declared["reads"])

    def apply(params: Any, image: Any, context: Mapping, **unused: Any) -> dict[str, Any]:
        arguments = (image, *(context[name] for name in names))
        if declared["batch"] == "any":
            return {"logits": called(*arguments)}
        one = [jax.lax.map(lambda a: called(*[x[None] for x in a])[0], arguments)]
        return {"logits": jnp.asarray(one[0])}

    return apply, tuple(declared["window"])


def _declared(archive: Archive) -> dict:
    """The manifest's description of the call, with types checked."""
    said = archive.manifest.get("function")
    numbers = ("channels", "classes")
    if (
        not isinstance(said, Mapping)
        or not isinstance(said.get("window"), list)
        or len(said["window"]) not in (2, 3)
    ):
        raise refused(
            "the manifest does not describe it",
            archive.path,
            found=str(said)[:80],
            expected="window, channels, classes, batch",
        )
    if not all(
        type(n) is int and 0 < n <= SIDE
        for n in (*said["window"], *(said.get(name) for name in numbers))
    ):
        raise refused(
            "the manifest gives no usable sizes",
            archive.path,
            found=str(said)[:80],
            expected=f"sizes from 1 to {SIDE}",
        )
    if said.get("batch") not in ("any", 1):
        raise refused(
            "the manifest gives no usable batch",
            archive.path,
            found=str(said.get("batch"))[:80],
            expected='"any" or 1',
        )
    found = {name: said[name] for name in ("window", *numbers, "batch")}
    return found | {"reads": _entries(said.get("reads", FIXED), len(said["window"]), archive)}


def reads(archive: Archive) -> Mapping[str, Any]:
    """What the function of an archive reads beside the image, as `models.context.Spec`.

    Raises: `ModelError` for a manifest that does not describe it.
    """
    from medjax.models.context import Entry

    return {
        entry["name"]: Entry(
            tuple(entry["shape"]), entry["dtype"], entry["moves"], block=tuple(entry["block"])
        )
        for entry in _declared(archive)["reads"]
    }


def _texts(given: Mapping[str, Any]) -> list[str]:
    """One line per entry, for readers of the manifest."""
    found = []
    for name, entry in given.items():
        sides = ["*window / block" if entry.block else "*window"] * (entry.moves == "voxel")
        axes = ["b", *sides, *map(str, entry.shape)]
        found.append(f"{name} ({', '.join(axes)}{',' * (len(axes) == 1)}) {entry.dtype}")
    return found


def _entries(said: Any, dims: int, archive: Archive) -> list[dict[str, Any]]:
    """The manifest's entries, with types checked."""

    def sizes(values: Any, lengths: Sequence[int]) -> bool:
        whole = isinstance(values, list) and all(type(n) is int and 0 < n <= SIDE for n in values)
        return whole and len(values) in lengths

    good = isinstance(said, list) and len(said) <= ENTRIES
    for entry in said if good else ():
        good = good and (
            isinstance(entry, Mapping)
            and set(entry) == {"name", "shape", "dtype", "moves", "block"}
            and isinstance(entry["name"], str)
            and entry["name"].isidentifier()
            and len(entry["name"]) <= 64
            and sizes(entry["shape"], range(5))
            and entry["dtype"] in DTYPES
            and entry["moves"] in ("case", "window", "voxel")
            and sizes(entry["block"], (0, dims) if entry["moves"] == "voxel" else (0,))
        )
    if not good or len({entry["name"] for entry in said}) != len(said):
        raise refused(
            "the manifest gives no usable inputs",
            archive.path,
            found=str(said)[:80],
            expected="name, shape, dtype, moves and block of each",
        )
    return [dict(entry) for entry in said]
