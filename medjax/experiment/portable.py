"""The network with its parameters as one serialised function (StableHLO through `jax.export`): runs without the code of the model.

    f(image (b, *window, m) float32, corpus (b,) int32, modality (b,) int32, spacing_mm (b, 3) float32) -> logits (b, *window, c) float32

In: a trained model. Out: bytes and how to call them. In: an archive of kind "function"; out: a network function for `infer.model.Model`.
What comes before and after a window (spacing, normalisation, labels, protocol) is in the archive's JSON.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.errors import ModelError, UsageError
from medjax.experiment.archive import Archive
from medjax.experiment.models import Trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
HARMLESS = re.compile(r"(mhlo\..*|Sharding|SPMDFullToShardShape|SPMDShardToFullShape|shape_assertion|annotate_device_placement)")


def pack(trained: Trained, params: Any, platforms: Sequence[str]) -> tuple[bytes, dict]:
    """Serialises the network; returns the bytes and the JSON-ready description of the call."""
    import jax
    import jax.numpy as jnp
    from jax import export

    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UsageError(f"unknown platform {unknown[0]!r}", expected=", ".join(PLATFORMS))
    net = trained.network

    def logits(image: Any, corpus: Any, modality: Any, spacing_mm: Any) -> Any:
        return net.apply(params, image, {"corpus": corpus, "modality": modality, "spacing_mm": spacing_mm})["logits"].astype(jnp.float32)

    def exported(batch: Any) -> Any:
        shapes = [((batch, *net.patch, net.channels), jnp.float32), ((batch,), jnp.int32), ((batch,), jnp.int32), ((batch, 3), jnp.float32)]
        return export.export(jax.jit(logits), platforms=tuple(platforms))(*[jax.ShapeDtypeStruct(*shape) for shape in shapes])

    try:
        found, batch = exported(export.symbolic_shape("b")[0]), "any"
    except Exception:  # a network that needs to know its batch
        found, batch = exported(1), 1
    classes = int(found.out_avals[0].shape[-1])
    calling = {
        "window": list(net.patch), "channels": net.channels, "classes": classes, "batch": batch, "platforms": list(platforms),
        "inputs": ["image (b, *window, channels) float32", "corpus (b,) int32", "modality (b,) int32", "spacing_mm (b, 3) float32"],
        "output": "logits (b, *window, classes) float32",
        "before": "canonical axes, crop, clip, normalise and resample as plan.json says",
        "after": "blend windows, resample to the scan, threshold or softmax, label values as labels.json says",
    }  # fmt: skip
    return bytes(found.serialize()), calling


def function(archive: Archive) -> tuple[Callable, tuple[int, ...]]:
    """The function of an archive as (params, image, context) -> {"logits"}, and its window.

    Raises: `ModelError` for bytes that are no such function, one with calls out of StableHLO, or one whose shapes are not those declared.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    declared = archive.manifest.get("function")
    try:
        found = export.deserialize(bytearray(archive.payload))
        window, batch = tuple(int(n) for n in declared["window"]), declared["batch"]
        image, logits = found.in_avals[0].shape, found.out_avals[0].shape
        fits = image[1:] == (*window, declared["channels"]) and logits[1:] == (*window, declared["classes"]) and len(found.in_avals) == 4
    except Exception as error:  # whatever the deserialiser raises for bytes it cannot read
        raise ModelError(
            f"model archive refused: no function ({type(error).__name__})", path=archive.path, fix="export it again"
        ) from error
    if not fits:
        raise ModelError(
            "model archive refused: a function of other shapes", path=archive.path, found=f"{image} -> {logits}", expected=declared
        )
    if calls := foreign_calls(found):
        raise ModelError("model archive refused: a function that calls out", path=archive.path, found=", ".join(sorted(calls))[:200])

    def apply(params: Any, image: Any, context: Mapping, **unused: Any) -> dict[str, Any]:
        arguments = (image, context["corpus"], context["modality"], context["spacing_mm"])
        if batch == "any":
            return {"logits": found.call(*arguments)}
        one = [jax.lax.map(lambda a: found.call(*[x[None] for x in a])[0], arguments)]
        return {"logits": jnp.asarray(one[0])}

    return apply, window


def foreign_calls(exported: Any) -> set[str]:
    """Targets of custom calls that are more than arithmetic: the only way out of a StableHLO module."""
    if b"custom_call" not in exported.mlir_module_serialized:
        return set()
    targets = re.findall(r'custom_call\s*@"?([\w.$-]+)|call_target_name\s*=\s*"([^"]+)"', exported.mlir_module())
    return {name for pair in targets for name in pair if name and not HARMLESS.fullmatch(name)}
