"""The network with its parameters as one serialised function (StableHLO, by `jax.export`).

It runs without the code of the model:

    f(image (b, *window, m) float32, corpus (b,) int32, modality (b,) int32,
      spacing_mm (b, 3) float32) -> logits (b, *window, c) float32

`pack`: a trained model -> bytes and the description of the call. `function`: an archive of kind
"function" -> a network function for `infer.model.Model`. The steps before and after a window
(spacing, normalisation, labels, protocol) are in the archive's JSON.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.errors import UsageError
from medjax.weights.formats.archive import Archive
from medjax.weights.formats.verification import Verifier, refused

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SIDE = 1 << 12  # voxels of a window along an axis


def pack(net: Any, params: Any, platforms: Sequence[str]) -> tuple[bytes, dict]:
    """Serialises a network (`runs.build.Network`).

    Returns the bytes and the JSON-ready description of the call.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UsageError(f"unknown platform {unknown[0]!r}", expected=", ".join(PLATFORMS))

    def logits(image: Any, corpus: Any, modality: Any, spacing_mm: Any) -> Any:
        return net.apply(
            params, image, {"corpus": corpus, "modality": modality, "spacing_mm": spacing_mm}
        )["logits"].astype(jnp.float32)

    def exported(batch: Any) -> Any:
        shapes = [
            ((batch, *net.patch, net.channels), jnp.float32),
            ((batch,), jnp.int32),
            ((batch,), jnp.int32),
            ((batch, 3), jnp.float32),
        ]
        return export.export(jax.jit(logits), platforms=tuple(platforms))(
            *[jax.ShapeDtypeStruct(*shape) for shape in shapes]
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
        "inputs": [
            "image (b, *window, channels) float32",
            "corpus (b,) int32",
            "modality (b,) int32",
            "spacing_mm (b, 3) float32",
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

    def apply(params: Any, image: Any, context: Mapping, **unused: Any) -> dict[str, Any]:
        arguments = (image, context["corpus"], context["modality"], context["spacing_mm"])
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
    return {name: said[name] for name in ("window", *numbers, "batch")}
