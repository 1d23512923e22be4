r"""What SegVol costs at its published size: the encoder beside MONAI's ViT, and a scan that is
opened and asked by text, box and points. Needs the packages of `./launch.sh parity`. Prints JSON.

    python -m benchmarks.segvol_cost SCAN OUT [--rounds 5] [--scans 20]

A random file under the published names is imported into OUT as a run (723 MB). Encoder: both
networks hold its weights and take the same image of 32x256x256 voxels, in turns in one process; the
largest difference of their outputs is shown. Scan: seconds to open it (read already, one pass of
the encoder) and per prompt on the overview, without what the first call compiles; the same two
programs serve all prompts and scans, of which there are several, shifted copies of SCAN. Memory is
what the process holds at most beyond its imports. An adapter of rank 8 is counted beside the base.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from tests.support import published_segvol as published

NAMES = ("liver", "spleen")
KIND = "image_encoder."


def imported(out: Path) -> tuple[Path, Path]:
    """(random file of the published size, the run made of it)."""
    from safetensors.numpy import save_file

    from medjax.prepare.plan import Intensity, Plan
    from medjax.runs.exchange.imported import import_weights

    file, run = out / "pytorch_model.safetensors", out / "run"
    if not (run / "import.json").is_file():
        out.mkdir(parents=True, exist_ok=True)
        save_file(published.tensors(published.Sizes()), file)
        labels = {"background": 0} | {name: i for i, name in enumerate(NAMES, 1)}
        dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
        (out / "dataset.json").write_text(json.dumps(dataset | {"numTraining": 1}))
        plan = Plan({"Organs": (1.0, 1.0, 1.0)}, {"CT": Intensity("zscore")})
        (out / "plan.json").write_text(json.dumps(plan.to_json()))
        documents = {"plan": out / "plan.json", "dataset": out / "dataset.json"}
        frame = published.Sizes().frame
        import_weights(file, "segvol", run, **documents, name="Organs", patch=frame)
    return file, run


def encoder(file: Path, run: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a forward pass of both encoders, ratio, and the largest difference."""
    import jax
    import torch
    from monai.networks.nets import ViT
    from safetensors.numpy import load_file

    from medjax.runs.trained import read_model

    sizes, trained = published.Sizes(), read_model(run)
    peer = ViT(
        in_channels=1,
        img_size=sizes.frame,
        patch_size=sizes.patch,
        hidden_size=sizes.width,
        mlp_dim=sizes.hidden,
        num_layers=sizes.layers,
        num_heads=12,
        proj_type="perceptron",
        classification=False,
        dropout_rate=0.0,
    ).eval()
    state = {
        name.split(KIND)[1]: torch.from_numpy(value)
        for name, value in load_file(file).items()
        if KIND in name
    }
    peer.load_state_dict(state, strict=False)
    image = np.random.default_rng(1).normal(size=(1, 1, *sizes.frame)).astype(np.float32)
    net, params = trained.network, jax.tree.map(jax.numpy.asarray, trained.params())
    encode = jax.jit(lambda p, x: net.methods["encode"](p, x, {}))
    given = jax.numpy.asarray(image[:, 0, ..., None])

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return peer(torch.from_numpy(image))[0].numpy()

    sides = {"medjax": lambda: np.asarray(encode(params, given)), "monai": theirs}
    turns = harness.in_turns(sides, rounds, warm=2)
    ours, expected = (turns.results[side] for side in sides)
    return {
        "difference": float(np.abs(ours.reshape(expected.shape) - expected).max()),
        "deviation": float(expected.std()),
        "wall_s": turns.median("wall", 3),
        "cpu_s": turns.median("cpu", 3),
        "wall_ratio": turns.ratio("medjax", "monai"),
        "cpu_ratio": turns.ratio("medjax", "monai", "cpu"),
    }


def asked(run: Path, scan: Path, scans: int) -> dict[str, Any]:
    """Seconds to open a scan and per prompt, compiled programs, MiB at the peak."""
    import jax.numpy  # noqa: F401

    import medjax
    from medjax.scans import formats

    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Any) -> Any:
        started = time.perf_counter()
        found = call()
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return found

    with harness.watched() as memory:
        model = medjax.Predictor(run, zoom="out")
        volume = formats.read(scan)
        center = np.asarray(volume.affine) @ (*(n // 2 for n in volume.array.shape[:3][::-1]), 1)
        x, y, z = center[:3]
        box = (x - 40, y - 40, z - 40, x + 40, y + 40, z + 40)
        for shift in range(scans):
            image = np.roll(volume.array, shift, 1)
            session = timed("open", lambda image=image: model.open(image, volume.affine))
            timed("text", lambda s=session: s.segment(text="liver"))
            timed("box", lambda s=session: s.segment(box=box, name="box"))
            timed("points", lambda s=session: s.segment(points=[(x, y, z)], name="points"))
            timed("click", lambda s=session: s.click((x + 5, y, z), name="points"))
            timed("text and box", lambda s=session: s.segment(text="spleen", box=box))
    return {
        "first_s": {name: round(values[0], 2) for name, values in seconds.items()},
        "median_s": {n: round(statistics.median(v[1:] or v), 2) for n, v in seconds.items()},
        "programs": model._predictor.compiled,
        "scans": scans,
        "peak_mib": round((memory.peak - memory.base) / 2**20),
    }


def adapter(run: Path, rank: int = 8) -> dict[str, int]:
    """Bytes of the parameters and of adapters in float32."""
    from medjax.runs import build
    from medjax.runs.trained import read_model
    from tests.support.published_segvol import adapted_linears

    base = build.count(read_model(run).params())
    added = 142_080 * rank
    return {"base_bytes": 4 * base, "adapter_bytes": 4 * added, "linears": adapted_linears()}


def main() -> None:
    """See the module's text."""
    p = harness.parser(
        __doc__, rounds=5, scans=20, only=harness.flag("", help=None), save=harness.flag("")
    )
    p.add_argument("scan", type=Path)
    p.add_argument("out", type=Path)
    given = p.parse_args()
    file, run = imported(given.out)
    if given.only == "asked":
        harness.show(asked(run, given.scan, given.scans), indent=None)
        return
    words = ("benchmarks.segvol_cost", given.scan, given.out, "--scans", given.scans)
    found = {
        "machine": harness.machine(),
        "asked": harness.run_json(harness.script(*words, "--only", "asked"), cwd=harness.ROOT),
        "encoder": encoder(file, run, given.rounds),
        "adapter": adapter(run),
    }
    harness.show(found, given.save)


if __name__ == "__main__":
    main()
