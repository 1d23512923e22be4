"""The networks compute what they computed: golden outputs and gradients of tiny ones, and wrong
wirings that must be noticed.

If a network is meant to change: `python -m tests.support.golden --write NAME`, and look at what
moved.
"""

import functools
import re

import numpy as np
import pytest

from medjax.registry import known
from tests.support import golden
from tests.support.mutants import mutated

# Parameters without a gradient: biases that an instance norm takes away, keys' biases in a softmax.
# In TSFM a norm stands before every head, so that constants of the residual stream vanish as well.
SILENT = re.compile(r"(^|/)(conv\d?|skip_conv|k)/bias$")
# SegVol's matrix of positions is never trained.
SILENT_SEGVOL = re.compile(r"(^|/)(k/bias|gaussian)$")
# A constant that Hermes adds to features is taken away by the norm of the next block.
SILENT_HERMES = re.compile(r"to_feature/ffn/fc2/bias$")
SILENT_TSFM = re.compile(r"(^|/)(conv\d?|short|up\d|out_proj|ln_f|k)/bias$")
QUICK = ("unet_2d_multitalent", "resenc_2d", "tsfm_2d", "swin_unet_gate", "masked_swin_3d")


@functools.cache
def _with_gradients(name):
    return golden.run(golden.CASES[name])


def _wrong(found, name):
    slack = golden.CASES[name].slack
    return {
        k: v
        for k, v in golden.deviations(found, golden.stored()[name]).items()
        if v > (slack if k.startswith("gradient") else 1)
    }


def _cases(quick):
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in golden.CASES]


@pytest.mark.parametrize("name", _cases(golden.ONE_OF_A_KIND))
def test_outputs_are_the_stored_ones(name):
    found = (
        _with_gradients(name) if name in QUICK else golden.run(golden.CASES[name], gradients=False)
    )
    assert _wrong(golden.fingerprint(*found), name) == {}


@pytest.mark.parametrize("name", _cases(QUICK))
def test_gradients_are_the_stored_ones(name):
    assert _wrong(golden.fingerprint(*_with_gradients(name)), name) == {}


@pytest.mark.parametrize("name", _cases(QUICK))
def test_every_parameter_takes_part(name):
    norms = {k: float(np.linalg.norm(g)) for k, g in _with_gradients(name)[1].items()}
    # MAST-Pro's organ encoder reaches the output through the weights of an attention alone
    floor = (1e-6 if name == "mast_pro" else 1e-5) * max(norms.values())
    allowed = SILENT_TSFM if golden.CASES[name].arguments.get("variant") == "t" else SILENT
    own = {"segvol": SILENT_SEGVOL, "hermes": SILENT_HERMES}
    allowed = own.get(golden.CASES[name].model, allowed)
    silent = [k for k, norm in norms.items() if norm < floor and not allowed.search(k)]
    assert norms and silent == []


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.ONE_OF_A_KIND)
def test_forward_mode_agrees_with_reverse_mode(name):
    forward, reverse, size = golden.both_modes(golden.CASES[name])
    assert size > 0
    assert abs(forward - reverse) < golden.CASES[name].slack * 1e-3 * size


def test_every_network_is_there():
    assert {case.model for case in golden.CASES.values()} == set(known("models"))
    assert set(golden.stored()) == set(golden.CASES)
    assert all(case["gradients"] and "shape" in str(case) for case in golden.stored().values())
    assert golden.STORED.stat().st_size < 100_000


MUTANTS = [  # what is wrong, the network that shows it, module below medjax.models, old, new
    (
        "sentence of another task",
        "mast_pro",
        "mast_pro",
        "else jnp.take(table, task, 0)",
        "else jnp.take(table, 0 * task, 0)",
    ),
    (
        "text before image",
        "universal",
        "universal",
        "jnp.broadcast_to(seen[:, None], text.shape), text",
        "text, jnp.broadcast_to(seen[:, None], text.shape)",
    ),
    (
        "skips swapped",
        "unet_2d_multitalent",
        "parts.blocks",
        "concatenate([up, skips[s]], -1)",
        "concatenate([skips[s], up], -1)",
    ),
    (
        "skips zeroed",
        "resenc_2d",
        "parts.blocks",
        "concatenate([up, skips[s]], -1)",
        "concatenate([up, 0 * skips[s]], -1)",
    ),
    (
        "deep outputs swapped",
        "unet",
        "parts.blocks",
        "finish(x, s))",
        "finish(x, len(skips) - 2 - s))",
    ),
    (
        "norm epsilon",
        "unet_2d_multitalent",
        "parts.norm",
        "epsilon: float = 1e-5",
        "epsilon: float = 1e-2",
    ),
    ("leak", "unet_2d_multitalent", "parts.norm", "LEAK = 0.01", "LEAK = 0.02"),
    (
        "norm without bias",
        "unet_2d_multitalent",
        "parts.norm",
        "(inverse * scale) + bias\n    return",
        "(inverse * scale)\n    return",
    ),
    (
        "upsampling flipped",
        "unet_2d_multitalent",
        "parts.conv",
        "flat = jnp.moveaxis(kernel, -2, 0)",
        "flat = jnp.moveaxis(kernel[::-1], -2, 0)",
    ),
    (
        "bias of the upsampling",
        "unet",
        "parts.conv",
        "y = self._expand(x, kernel)\n        if self.use_bias",
        "y = self._expand(x, kernel)\n        if False",
    ),
    (
        "heads of other corpora",
        "unet_corpus_heads",
        "parts.heads",
        "first[head] + 1 + np",
        "first[head] + np",
    ),
    (
        "no background logit",
        "resenc_multitalent",
        "parts.heads",
        "y[..., 1:] - y[..., :1]",
        "y[..., 1:]",
    ),
    (
        "block without shortcut",
        "resenc_2d",
        "parts.blocks",
        "return leaky_relu(x + y)",
        "return leaky_relu(y)",
    ),
    (
        "shortcut by maximum",
        "resenc_2d",
        "parts.blocks",
        "x.shape[-1]).mean(-2)",
        "x.shape[-1]).max(-2)",
    ),
    ("stem without norm", "resenc_2d", "resenc", '"stem")(x)', '"stem")(x) * 1.01'),
    (
        "skips zeroed",
        "tsfm_2d",
        "tsfm",
        "strict=True)]), skip], -1)",
        "strict=True)]), 0 * skip], -1)",
    ),
    (
        "skips zeroed",
        "stunet",
        "tsfm",
        "strict=True)]), skip], -1)",
        "strict=True)]), 0 * skip], -1)",
    ),
    ("skips of the wrong level", "tsfm", "tsfm", "(x, skips[level])", "(x, skips[level] * 1.001)"),
    (
        "attention without residual",
        "tsfm_2d",
        "parts.vit",
        'x = x + dense(width, name="out")',
        'x = dense(width, name="out")',
    ),
    ("MLP without residual", "tsfm_2d", "parts.vit", "x = x + drop(y)", "x = drop(y)"),
    ("tanh GELU", "tsfm_2d", "parts.vit", "approximate=False", "approximate=True"),
    ("no position table", "tsfm_2d", "parts.vit", "(x + table.astype(x.dtype))", "(x)"),
    (
        "layers in reverse",
        "tsfm_2d",
        "parts.vit",
        "for i in range(self.layers)]",
        "for i in reversed(range(self.layers))]",
    ),
    ("heads mixed", "tsfm_2d", "parts.vit", "self.heads, -1), -2, -3)", "-1, self.heads), -1, -3)"),
    (
        "no last norm of the transformer",
        "tsfm_2d",
        "parts.vit",
        'name="ln_f")(x)',
        'name="ln_f")(x) + x',
    ),
    (
        "bottleneck without residual",
        "tsfm_bare",
        "parts.vit",
        "y = x + y if self.residual else y",
        "y = y if self.residual else y",
    ),
    ("shortcut of the raw input", "tsfm_bare", "tsfm", "(x if raw else seen)", "(x)"),
    (
        "no activation after the sum",
        "stunet",
        "tsfm",
        "return x + y if pre else leaky_relu(x + y)",
        "return x + y",
    ),
    (
        "no norm before the heads",
        "tsfm_2d",
        "tsfm",
        "(x) if self.final_norm else x\n            return head",
        "(x) * 1.01 if self.final_norm else x\n            return head",
    ),
    ("no shift", "swin_unet_heads_by_channels", "parts.attention", "w // 2 if i % 2 else 0", "0"),
    (
        "no mask of shifted windows",
        "swin_unet_heads_by_channels",
        "parts.window",
        "BLOCKED = -100.0",
        "BLOCKED = 0.0",
    ),
    (
        "position bias transposed",
        "swin_unet_heads_by_channels",
        "parts.attention",
        "table[index]",
        "table[index.T]",
    ),
    (
        "corner bias index",
        "swin_unetr_legacy_xyz",
        "parts.window",
        "tokens = np.arange(math.prod(used))",
        "tokens = np.arange(math.prod(used))[::-1]",
    ),
    (
        "queries and keys swapped",
        "swin_unet_heads_by_channels",
        "parts.attention",
        "*split_heads(qkv, self.heads), bias",
        "*(split_heads(qkv, self.heads)[i] for i in (1, 0, 2)), bias",
    ),
    (
        "tanh GELU",
        "swin_unet_heads_by_channels",
        "parts.attention",
        "approximate=False",
        "approximate=True",
    ),
    (
        "attention without residual",
        "swin_unet_heads_by_channels",
        "parts.attention",
        "x = x + branch(attended)",
        "x = branch(attended)",
    ),
    (
        "MLP without residual",
        "swin_unet_heads_by_channels",
        "parts.attention",
        "x = x + branch(y)",
        "x = branch(y)",
    ),
    (
        "merging order",
        "swin_unetr_2d",
        "parts.patch",
        "PLANE = ((0, 0), (1, 0)",
        "PLANE = ((1, 0), (0, 0)",
    ),
    (
        "legacy merging order",
        "swin_unetr_legacy_xyz",
        "parts.patch",
        '"legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0)',
        '"legacy": ((0, 0, 0), (0, 1, 0), (1, 0, 0)',
    ),
    (
        "skips swapped",
        "swin_unetr_2d",
        "swin_unetr",
        "concatenate([up, skip], -1)",
        "concatenate([skip, up], -1)",
    ),
    (
        "not whitened",
        "swin_unetr_2d",
        "swin_unetr",
        "found = tuple(whiten(x) for x in maps) if",
        "found = tuple(maps) if",
    ),
    (
        "axes not turned back",
        "swin_unetr_legacy_xyz",
        "swin_unetr",
        '"logits": flip(logits',
        '"logits": (logits',
    ),
    (
        "third skip",
        "swin_unetr_2d",
        "swin_unetr",
        'maps["deepest"], maps["x3"]',
        'maps["deepest"], 1.01 * maps["x3"]',
    ),
    (
        "skip and up swapped",
        "swin_unet",
        "swin_unet",
        "concatenate([x, skip], -1)",
        "concatenate([skip, x], -1)",
    ),
    (
        "skip of the wrong stage",
        "swin_unet",
        "swin_unet",
        "skip = entering[levels - k]",
        "skip = 0 * entering[levels - k]",
    ),
    (
        "no norm after the encoder",
        "swin_unet",
        "swin_unet",
        'x = norm("enc_norm")(x)',
        'norm("enc_norm")(x)',
    ),
    (
        "image not repeated",
        "swin_unet",
        "parts.swin_tower",
        "jnp.repeat(image, self.repeat, -1)",
        "jnp.pad(image, [(0, 0)] * (image.ndim - 1) + [(0, 2)])",
    ),
    (
        "no norm of the patches",
        "swin_unet",
        "parts.swin_tower",
        'name="patch_norm")(x)',
        'name="patch_norm")(x) + x',
    ),
    (
        "heads shared wrongly",
        "swin_unet_heads",
        "parts.heads",
        "return tuple(share)",
        "return tuple(share[i] for i in (1, 0, 2))",
    ),
    (
        "heads by channels",
        "swin_unet_heads_by_channels",
        "parts.heads",
        "seen.setdefault(tuple(sorted(channels))",
        "seen.setdefault(tuple(channels)",
    ),
    (
        "experts permuted",
        "swin_unet_gate",
        "parts.moe",
        "weighted = (hidden * share[..., None])",
        "weighted = (hidden * share[..., ::-1, None])",
    ),
    ("gate of its own biases", "swin_unet_gate", "parts.moe", "(share[..., None] * b2)", "(b2)"),
    (
        "tanh GELU of experts",
        "swin_unet_gate",
        "parts.moe",
        "x, w1) + b1, approximate=False",
        "x, w1) + b1, approximate=True",
    ),
    (
        "a gate per token",
        "swin_unet_gate_image",
        "parts.moe",
        'if self.gate_scope == "image":',
        "if False:",
    ),
    (
        "softmax over experts",
        "swin_unet_channel_gate",
        "parts.moe",
        "(y * jax.nn.softmax(self._gate(x, width), -1))",
        "(y * jax.nn.softmax(self._gate(x, width), -2))",
    ),
    (
        "experts permuted",
        "swin_unet_hard_gather",
        "parts.moe",
        "return routed(x, *weights, chosen)",
        "return routed(x, *weights, chosen[::-1])",
    ),
    (
        "expert of the modality",
        "swin_unet_hard_mask",
        "parts.moe",
        "chosen = jnp.asarray(self.expert_of)[chosen]",
        "chosen = chosen % self.experts",
    ),
    (
        "windows reversed",
        "swin_unet_3d",
        "parts.window",
        "(1 + i, 1 + axes + i)), 2 * axes + 1]\n    return (windows",
        "(axes - i, 2 * axes - i)), 2 * axes + 1]\n    return (windows",
    ),
    (
        "tokens not hidden",
        "masked_swin",
        "parts.swin_tower",
        "jnp.where(masked[0][..., None], masked",
        "jnp.where(masked[0][..., None] & False, masked",
    ),
    (
        "expansion transposed",
        "masked_swin_3d",
        "parts.patch",
        "(1 + i, 1 + axes + i)), 2 * axes + 1]\n    sides",
        "(1 + i, 2 * axes - i)), 2 * axes + 1]\n    sides",
    ),
    ("shift not kept", "masked_swin_experts", "parts.window", "if keep_shift:", "if False:"),
    (
        "classes that a corpus lacks are keys",
        "hermes",
        "parts.context_priors",
        "(features, priors, exists), priors",
        "(features, priors), priors",
    ),
    (
        "skip and enlarged swapped",
        "hermes",
        "hermes",
        "[skip, enlarged(x, skip.shape[1:-1])]",
        "[enlarged(x, skip.shape[1:-1]), skip]",
    ),
    (
        "volume's tokens not hidden",
        "masked_vit",
        "parts.vit",
        "jnp.where(masked[0][..., None], masked",
        "jnp.where(masked[0][..., None] & False, masked",
    ),
    (
        "prompt not placed among the keys",
        "segvol",
        "parts.two_way",
        "back(there, tokens + entered, tokens, bias)",
        "back(there, tokens, tokens, bias)",
    ),
    (
        "absent tokens are keys",
        "segvol",
        "parts.two_way",
        "jnp.where(exists, 0.0",
        "jnp.where(exists | True, 0.0",
    ),
    (
        "corners swapped",
        "segvol_release_with_masks",
        "parts.prompt_encoder",
        "+ self.points[2:]",
        "+ self.points[:1:-1]",
    ),
    (
        "axes of positions",
        "segvol_release_with_masks",
        "parts.prompt_encoder",
        "[z / frame[1], y / frame[0], x / frame[2]]",
        "[y / frame[1], z / frame[0], x / frame[2]]",
    ),
    (
        "unknown tasks are the last known one",
        "segvol_priors",
        "parts.priors",
        "jnp.where(known, index, rows)",
        "jnp.where(known, index, rows - 1)",
    ),
    (
        "prototype not added",
        "segvol_prototypes",
        "parts.mask_decoder",
        "* filters[0] + first",
        "* filters[0]",
    ),
    (
        "no norm after the decoder",
        "masked_swin",
        "masked_swin",
        'name="dec_norm")(x)',
        'name="dec_norm")(x) + x',
    ),
]
SLOW = {  # of the mutants: noticed as well, but the quick run has enough of each kind
    "skip and enlarged swapped",
    "unknown tasks are the last known one",
    "prototype not added",
    "prompt not placed among the keys",
    "corners swapped",
    "axes of positions",
    "axes not turned back",
    "bias of the upsampling",
    "corner bias index",
    "gate of its own biases",
    "heads by channels",
    "image not repeated",
    "layers in reverse",
    "leak",
    "no last norm of the transformer",
    "no norm after the decoder",
    "no norm before the heads",
    "no norm of the patches",
    "norm without bias",
    "not whitened",
    "queries and keys swapped",
    "shortcut by maximum",
    "skips of the wrong level",
    "stem without norm",
    "tanh GELU of experts",
    "third skip",
    "windows reversed",
}
BACKWARD = [  # visible in the gradient only
    (
        "leak left out",
        "unet_2d_multitalent",
        "parts.norm",
        "normal * scale + bias, dy.astype(jnp.float32), leak)",
        "normal * scale + bias, dy.astype(jnp.float32), 1)",
    ),
    (
        "kernel gradient transposed",
        "unet_2d_multitalent",
        "parts.conv",
        "conv_cpu.kernel_gradient(x, dy, sizes, strides)",
        "conv_cpu.kernel_gradient(x, dy, sizes, strides)[::-1]",
    ),
    (
        "gate cut off",
        "swin_unet_gate",
        "parts.moe",
        "share = jax.nn.softmax(self._gate(x, self.experts), -1)",
        "share = jax.lax.stop_gradient(jax.nn.softmax(self._gate(x, self.experts), -1))",
    ),
]


def _named(mutant):
    quick = mutant[0] not in SLOW and mutant[1] in golden.ONE_OF_A_KIND
    marks = () if quick else pytest.mark.slow
    return pytest.param(mutant, id=f"{mutant[1]}-{mutant[0]}".replace(" ", "_"), marks=marks)


def _shows(mutant, gradients):
    _, name, module, old, new = mutant
    with mutated(f"medjax.models.{module}", old, new):
        found = golden.run(golden.CASES[name], gradients=gradients)
    wrong = _wrong(golden.fingerprint(*found), name)
    assert wrong and max(wrong.values()) > 3, "the golden output does not notice"
    return wrong


@pytest.mark.parametrize("mutant", [_named(mutant) for mutant in MUTANTS])
def test_a_wrong_wiring_is_noticed(mutant):
    assert _shows(mutant, gradients=False)


@pytest.mark.parametrize("mutant", [_named(mutant) for mutant in BACKWARD])
def test_a_wrong_gradient_is_noticed(mutant):
    assert all(name.startswith("gradient of") for name in _shows(mutant, gradients=True))


def test_every_network_has_a_mutant():
    quick = {
        golden.CASES[name].model
        for what, name, *_ in MUTANTS
        if what not in SLOW and name in golden.ONE_OF_A_KIND
    }
    assert quick == set(known("models")) and SLOW < {what for what, *_ in MUTANTS}


def test_the_right_networks_are_back_after_a_mutant():
    mutant = MUTANTS[0]
    with (
        pytest.raises(AssertionError, match="0 x 'no such text'"),
        mutated(f"medjax.models.{mutant[2]}", "no such text", ""),
    ):
        pass
    name = mutant[1]
    assert _wrong(golden.fingerprint(*golden.run(golden.CASES[name], gradients=False)), name) == {}
