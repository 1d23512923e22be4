"""Kernels of a program that XLA:GPU has scheduled: bytes, FLOPs, kinds, collectives.

In: the text of the compiled module. Out: one `Kernel` for every launch. Bytes are those of a
kernel's operands and results, as if nothing stayed in a cache. Loops count as often as they run;
of a conditional every branch counts with an equal share.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

BYTES = {
    **{"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "pred": 1},
    **{f"{sign}{8 * n}": n for sign in "su" for n in (1, 2, 4, 8)},
}
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id"),
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
CONVOLUTIONS = {  # cuDNN's calls
    "__cudnn$convForward": "convolution",
    "__cudnn$convBiasActivationForward": "convolution with bias",
    "__cudnn$convBackwardInput": "convolution, gradient of the input",
    "__cudnn$convBackwardFilter": "convolution, gradient of the kernel",
}
KINDS = ("transpose", "copy", "reduce", "scatter", "gather", "concatenate", "pad")  # of fusions
_SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
      kind: "convolution...", "product", a collective's name, or what a fusion does.
      bytes, flops: of one launch. times: launches in one call of the program.
      layout: "channels last" or "channels first", of a convolution.
      shape: type of the result. scope: where in the traced program it comes from.
    """

    kind: str
    bytes: int
    flops: int = 0
    times: float = 1
    layout: str = ""
    shape: str = ""
    scope: str = ""

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least time of all its launches at these rates."""
        return self.times * max(self.flops / flops_per_s, self.bytes / bytes_per_s)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str

    def word(self, pattern: str) -> str:
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


def kernels(text: str) -> list[Kernel]:
    """Every kernel that the entry computation of a module launches."""
    found, entry = _parse(text)
    return list(_walk(found, entry, 1.0))


def collectives(text: str) -> dict[str, int]:
    """How often each kind of communication is written in a module, of any platform.

    A loop's body counts once. Of the pair of an asynchronous one the start counts.
    """
    found = collections.Counter()
    for instructions in _parse(text)[0].values():
        for one in instructions:
            if (kind := one.op.removesuffix("-start")) in COLLECTIVES:
                found[kind] += 1
    return dict(found)


def _walk(found: dict, name: str, times: float) -> Iterator[Kernel]:
    instructions = found[name]
    types = {one.name: one.shape for one in instructions}
    for one in instructions:
        if one.op in FREE or one.op.endswith("-done"):
            continue
        if one.op == "while":
            trips = one.word(r'known_trip_count":\{"n":"(\d+)"')
            yield from _walk(found, one.word(r"body=%?([\w.\-]+)"), times * int(trips or 1))
        elif one.op == "conditional":
            yield Kernel("conditional", 0, times=times)
            listed = one.word(r"branch_computations=\{([^}]*)\}")
            branches = [b.strip().lstrip("%") for b in listed.split(",")] if listed else []
            branches = branches or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)
            for branch in branches:
                yield from _walk(found, branch, times / len(branches))
        elif one.op == "call":
            yield from _walk(found, one.word(r"to_apply=%?([\w.\-]+)"), times)
        else:
            given = [types.get(name, "") for name in one.operands]
            moved = _size(one.shape) + sum(map(_size, given))
            kind, flops, layout = _described(one, given, found)
            scope = one.word(r'op_name="([^"]*)"')
            yield Kernel(kind, moved, flops, times, layout, one.shape.split("{")[0], scope)


def _described(one: _Instruction, given: Sequence[str], found: dict) -> tuple[str, int, str]:
    """(kind, FLOPs, layout) of an instruction that launches something."""
    if (kind := one.op.removesuffix("-start")) in COLLECTIVES:
        return kind, 0, ""
    if one.op == "custom-call":
        target = one.word(r'custom_call_target="([^"]+)"')
        if target in CONVOLUTIONS:
            return (CONVOLUTIONS[target], *_convolution(one, given, CONVOLUTIONS[target]))
        if "cublas" in target:
            contracted = one.word(r'lhs_contracting_dimensions":\[([^\]]*)\]')
            return "product", _product(one.shape, given[0], contracted), ""
        return f"call of {target}", 0, ""
    if one.op == "fusion":
        inner = found.get(one.word(r"calls=%?([\w.\-]+)"), [])
        types = {part.name: part.shape for part in inner}
        flops = sum(
            _product(
                part.shape,
                types.get(part.operands[0], ""),
                part.word(r"lhs_contracting_dims=\{([0-9,]*)\}"),
            )
            for part in inner
            if part.op == "dot"
        )
        ops = {part.op for part in inner}
        kind = "product" if flops else next((k for k in KINDS if k in ops), "elementwise")
        return kind, flops, ""
    return ("copy" if one.op.startswith("copy") else one.op), 0, ""


def _convolution(one: _Instruction, given: Sequence[str], kind: str) -> tuple[int, str]:
    """(FLOPs, layout): its labels are always those of the forward convolution."""
    image, kernel, _ = re.split(r"_|->", one.word(r"dim_labels=([^\s,]+)"))
    left, right, result = (_sides(shape) for shape in (given[0], given[1], one.shape))
    if kind.endswith("input"):
        filters, out = right, left
    elif kind.endswith("kernel"):
        filters, out = result, right
    else:
        filters, out = right, result
    flops = 2 * math.prod(out) * math.prod(filters) // filters[kernel.index("o")]
    return flops, "channels last" if image.index("f") > 1 else "channels first"


def _product(shape: str, left: str, contracted: str) -> int:
    sides = _sides(left)
    axes = [int(axis) for axis in contracted.replace('"', "").split(",") if axis.strip()]
    return 2 * math.prod(_sides(shape)) * math.prod(sides[axis] for axis in axes)


def _sides(shape: str) -> list[int]:
    """Of the first array of a type."""
    found = _SHAPE.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _size(shape: str) -> int:
    return sum(
        BYTES[kind] * math.prod(int(n) for n in sides.split(",") if n)
        for kind, sides in _SHAPE.findall(shape)
    )


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """(computations by name, the name of the entry)."""
    found, here, entry = {}, None, ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            here = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            here = None
        elif here is not None and (one := _instruction(line)):
            here.append(one)
    return found, entry


def _instruction(line: str) -> _Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    op = re.match(r"([\w\-]+)\(", rest)
    if not op:
        return None
    end = _closing(rest[op.end() - 1 :]) + op.end()
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[op.end() : end]))
    return _Instruction(name, shape, op[1], operands, rest[end:])


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    return len(text) - 1
