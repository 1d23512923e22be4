"""A training step beside PyTorch: what `benchmarks.step`, `.networks` and `.m4oe_step` time.

`Ours` is the update of `medjax.train.update` on one device, as a training runs it: forward,
backward, the optimizer with its clipping, buffers donated; `OfRun` is the update of a run folder
with its own losses and augmentation. `Theirs` does the same with a PyTorch module. `Ours` and
`Theirs` have `compile()`, `step() -> loss`, `memory()` and `parameters`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLIP = 12.0


class Task:
    """Losses of a network on a batch that is already normalised."""

    def __init__(self, net: Any, losses: Sequence[tuple], context: Sequence[str]):
        self.net, self.losses, self.context = net, losses, context

    def loss(self, params: Any, batch: Mapping, key: Any) -> tuple[Any, dict]:
        """The weighted sum over losses and resolutions."""
        return self._total(params, batch, True, rngs={"dropout": key}), {}

    def validate(self, params: Any, batch: Mapping) -> dict:
        """The same sum without what is random in training, as `loss` (1,)."""
        return {"loss": self._total(params, batch, False)[None]}

    def _total(self, params: Any, batch: Mapping, train: bool, **more: Any) -> Any:
        from medjax.losses.parts import deep

        context = {name: batch[name] for name in self.context} or None
        outputs = self.net.apply({"params": params}, batch["image"], context, train, **more)
        return deep.total(self.losses, outputs, batch)[0]


class Ours:
    """medjax on the default device.

    Args:
      net: a Flax module with (image, context, train). losses: (name, weight, f). batch: "image" and
        what the losses read. context: names of the batch entries that the network reads.
      init: key -> parameters; default the network's own. optimizer: of `medjax.train.optim`.
    """

    def __init__(
        self,
        net: Any,
        losses: Sequence[tuple],
        batch: Mapping[str, Any],
        optimizer: Any,
        context: Sequence[str] = (),
        init: Callable | None = None,
    ):
        import jax
        import jax.numpy as jnp

        from medjax.train import sharding, state, update

        image = jax.ShapeDtypeStruct((1, *batch["image"].shape[1:]), jnp.float32)
        own = {name: jnp.asarray(batch[name])[:1] for name in context} or None

        def begin(key):
            return net.init(key, jnp.zeros(image.shape, image.dtype), own)["params"]

        device = jax.devices()[0]
        mesh = sharding.make_mesh(devices=[device])
        init = init or begin
        target = state.abstract(init, optimizer, mesh, sharding.REPLICATE)
        task = Task(net, losses, context)
        self.function = update.make(task, optimizer, 0, mesh, target)[0]
        self.state = state.born(init, optimizer, target, 0)
        self.batch = jax.device_put(
            {name: jnp.asarray(value) for name, value in batch.items()}, sharding.split(mesh)
        )
        self.request = jax.device_put(jnp.zeros(1, jnp.int32), sharding.split(mesh))
        self.device, self.planned = device, None
        self.parameters = sum(v.size for v in jax.tree.leaves(target["params"]))

    def compile(self) -> None:
        """Compiles and runs one step, which finds the compiled program in jax' cache."""
        program = self.function.trace(self.state, self.batch, self.request).lower().compile()
        if (sizes := program.memory_analysis()) is not None:
            self.planned = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
        self.step()

    def step(self) -> float:
        """One step; the loss before it."""
        self.state, scalars = self.function(self.state, self.batch, self.request)
        self.loss = float(scalars["loss"])
        return self.loss

    def memory(self) -> dict:
        """GiB at the peak: what the allocator saw, and what the compiled program plans (arguments
        and temporaries).
        """
        seen = (self.device.memory_stats() or {}).get("peak_bytes_in_use")
        return {
            k: v and round(v / 2**30, 2) for k, v in (("seen", seen), ("planned", self.planned))
        }


class OfRun:
    """The training step of a run folder, on a batch of noise.

    Attributes:
      facts: FLOPs, bytes of temporaries and of the state, by the compiled program.
    """

    def __init__(self, folder: Path):
        import jax
        import numpy as np

        from medjax.runs import build, footprint
        from medjax.runs.trained import read_model
        from medjax.train import sharding, state, update

        trained = read_model(folder)
        config, net = trained.config, trained.network
        optimizer = build.make_optimizer(config)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        target = state.abstract(net.init, optimizer, mesh, sharding.REPLICATE)
        task = build.make_task(config, trained.space, net)
        self.function = update.make(task, optimizer, 0, mesh, target)[0]
        self.state = state.born(net.init, optimizer, target, 0)
        rng = np.random.default_rng(0)

        def filled(name: str, array: Any) -> Any:
            if name == "image":
                return rng.integers(-3000, 3000, array.shape, np.int16)
            if name == "label":
                return rng.integers(0, 2, array.shape, np.int16)
            value = {"gain": 1e-3, "spacing_mm": 1.0}.get(name, 0)
            return np.full(array.shape, value, array.dtype)

        batch = {k: filled(k, v) for k, v in footprint.abstract_batch(config, net).items()}
        self.batch = jax.device_put(batch, sharding.split(mesh))
        self.request = jax.device_put(np.zeros(1, np.int32), sharding.split(mesh))
        program = self.function.trace(self.state, self.batch, self.request).lower().compile()
        cost, memory = program.cost_analysis(), program.memory_analysis()
        held = jax.tree.leaves({k: v for k, v in target.items() if k != "step"})
        self.facts = {
            "flops": cost.get("flops", 0.0),
            "temporary_bytes": memory.temp_size_in_bytes,
            "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in held),
        }

    def __call__(self) -> float:
        self.state, scalars = self.function(self.state, self.batch, self.request)
        return float(scalars["loss"])


class Theirs:
    """PyTorch.

    Args:
      net: the module, on its device. optimizer: of PyTorch. loss: () -> the scalar of one batch.
      clip: norm of the gradients, or None.
    """

    def __init__(
        self, net: Any, optimizer: Any, loss: Callable[[], Any], clip: float | None = CLIP
    ):
        self.net, self.optimizer, self.value_of, self.clip = net, optimizer, loss, clip
        self.parameters = sum(p.numel() for p in net.parameters())

    def compile(self) -> None:
        """Two steps: torch.compile works at the first, memory is measured from the second."""
        import torch

        self.step()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.step()

    def step(self) -> float:
        """One step; the loss before it."""
        self.loss = float(self.send())  # waits for the device
        return self.loss

    def send(self) -> Any:
        """One step, not waited for; the loss before it, a tensor."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        value = self.value_of()
        value.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        return value.detach()

    def memory(self) -> dict:
        """GiB at the peak of the GPU."""
        import torch

        seen = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        return {"seen": seen and round(seen / 2**30, 2)}


def supervised(
    net: Any, patch: Sequence[int], batch: int, classes: int, init: Callable | None = None
) -> Ours:
    """Our step of a network on random volumes: sigmoid cross-entropy and soft Dice at every
    resolution, SGD with Nesterov momentum and coupled weight decay, clipping to norm 12.
    """
    import numpy as np

    from medjax.losses import cross_entropy, dice
    from medjax.train import optim

    rng = np.random.default_rng(0)
    data = {
        "image": rng.normal(size=(batch, *patch, 1)).astype(np.float32),
        "label": rng.integers(0, classes + 1, (batch, *patch)).astype(np.int32),
        "table": np.eye(classes + 1, classes, -1, dtype=bool)[None].repeat(batch, 0),
        "known": np.ones((batch, classes), bool),
    }
    losses = [("cross_entropy", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make())]
    return Ours(net, losses, data, optim.make(steps=1000), init=init)


def supervised_peer(
    net: Any, patch: Sequence[int], batch: int, classes: int, dtype: str = "float32"
) -> Theirs:
    """The same step of a PyTorch module that returns a list of logits, finest first; compiled on a
    GPU, eager on a CPU.
    """
    import torch

    from benchmarks.peers import torch_losses

    device = next(net.parameters()).device.type
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    image = torch.randn(batch, 1, *patch, device=device)
    label = torch.randint(0, classes + 1, (batch, *patch), device=device)

    def loss(image, label):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            outputs = net(image)
        return torch_losses.supervised(outputs, label, classes)

    value_of = torch.compile(loss) if device == "cuda" else loss
    optimizer = torch.optim.SGD(
        net.train().parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
    )
    return Theirs(net, optimizer, lambda: value_of(image, label))


def filled(shapes: Any) -> Callable[[Any], Any]:
    """key -> parameters of fan-in scaled numbers that need no random draws, which for large
    networks take minutes to compile; norms' scales and biases are filled alike, which changes no
    cost.
    """
    import jax
    import jax.numpy as jnp

    def fill(leaf):
        fan = math.prod(leaf.shape[:-1]) or 1
        wave = jnp.sin(12.9898 * jnp.arange(leaf.size, dtype=jnp.float32))
        return (2 / math.sqrt(fan) * wave).reshape(leaf.shape).astype(leaf.dtype)

    return lambda key: jax.tree.map(fill, shapes)
