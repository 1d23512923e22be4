"""Security, readers of weights: pickles, PyTorch files, npz and safetensors that want to run, to
crash or to fill the memory.
"""

import random
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.attack import hostile as h
from benchmarks.attack.harness import Said, Seen, Site, medjax, peak, refused, row

MULTIARRAY = "numpy._core.multiarray"


def imported(site: Site, path: Path) -> Said:
    """`medjax import` of a weight file."""
    return medjax("import", path, "--family", "nnunet", "-o", site.root / "made" / path.name)


def _pointer_keys() -> Iterator[tuple[str, bytes]]:
    """Pickles of allow-listed names whose scalar would be a pointer taken from the file."""
    for module in (MULTIARRAY, "numpy.core.multiarray"):
        key = h.call(h.name(module, "scalar"), h.object_dtype(), h.text_bytes(b"A" * 8))
        yield f"{module}.scalar as a key", h.mapping((key, 1))
    array = h.call(
        h.name(MULTIARRAY, "_reconstruct"),
        h.name("numpy", "ndarray"),
        h.value((0,)),
        h.text_bytes(b"b"),
    )
    whole = h.built(array, 1, h.value((1,)), h.object_dtype(), False, h.text_bytes(b"A" * 8))
    yield "_reconstruct of an array", h.mapping(("network_weights", h.mapping(("w", whole))))
    made = h.call(
        h.name("numpy", "ndarray"), h.value((1,)), h.object_dtype(), h.text_bytes(b"A" * 8)
    )
    yield "ndarray over the bytes", h.mapping(("network_weights", h.mapping(("w", made))))
    direct = h.call(h.name("numpy", "dtype"), "O")
    yield (
        "an object array",
        h.mapping(("w", h.call(h.name("numpy", "ndarray"), h.value((3,)), direct))),
    )


@row("S5", "import: allow-listed names that make numpy follow a pointer of the file", "fail")
def pointers(site: Site) -> Iterator[Seen]:
    for i, (variant, words) in enumerate(_pointer_keys()):
        yield refused(
            f"zip: {variant}",
            imported(site, h.torch_zip(site.path(f"a{i}.pth"), words)),
            f"a{i}.pth",
        )
        (stream := site.path(f"b{i}.pth")).write_bytes(h.pickled(words))
        yield refused(f"stream: {variant}", imported(site, stream), f"b{i}.pth")


@row("S6", "plan --import: the same as plans.pkl", "fail")
def pointers_in_plans(site: Site) -> Iterator[Seen]:
    for i, (variant, words) in enumerate(_pointer_keys()):
        (path := site.path(str(i), "plans.pkl")).write_bytes(h.pickled(words))
        yield refused(
            variant, medjax("plan", "--import", path, "-o", site.root / "p.json"), "plans.pkl"
        )


@row("S9", "pickles that call functions", "pass")
def functions(site: Site) -> Iterator[Seen]:
    touch = f"touch {site.root}/PWNED"
    for variant, words in (
        ("posix.system", h.call(h.name("posix", "system"), touch)),
        (
            "builtins.eval",
            h.call(h.name("builtins", "eval"), f"open({str(site.root / 'PWNED')!r}, 'w')"),
        ),
        (
            "builtins.getattr",
            h.call(h.name("builtins", "getattr"), h.name("collections", "OrderedDict"), "fromkeys"),
        ),
        ("torch.load", h.call(h.name("torch", "load"), "x")),
        ("_codecs.decode", h.call(h.name("_codecs", "decode"), h.text_bytes(b"x"), "latin1")),
        ("OrderedDict.fromkeys", h.call(h.name("collections", "OrderedDict.fromkeys"), "ab")),
        ("ndarray.tofile", h.call(h.name("numpy", "ndarray.tofile"), str(site.root / "PWNED"))),
    ):
        for kind in ("zip", "stream", "plan"):
            path = site.path(f"{variant}-{kind}", "plans.pkl" if kind == "plan" else "w.pth")
            h.torch_zip(path, words) if kind == "zip" else path.write_bytes(h.pickled(words))
            said = (
                medjax("plan", "--import", path, "-o", site.root / "p.json")
                if kind == "plan"
                else imported(site, path)
            )
            yield refused(
                f"{variant}, {kind}",
                said,
                path.name,
                variant.rsplit(".", 1)[0],
                also=not (site.root / "PWNED").exists(),
            )


@row("S10", "damaged and odd PyTorch files", "pass")
def odd_files(site: Site) -> Iterator[Seen]:
    inner = h.text_bytes(h.pickled(h.call(h.name("posix", "system"), f"touch {site.root}/PWNED")))
    good = h.torch_zip(site.path("good.pth"), h.mapping(("w", h.tensor(h.storage())))).read_bytes()
    link = site.path("link.pth")
    with zipfile.ZipFile(link, "w") as file:
        (entry := zipfile.ZipInfo("archive/data.pkl")).external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc/passwd")
    files: Mapping[str, bytes | Path] = {
        "nested": h.torch_zip(
            site.path("n.pth"), h.mapping(("w", inner), ("t", h.tensor(h.storage())))
        ),
        "pid": h.pickled(b"P0\n"),
        "link": link,
        "garbage": b"\x93garbage" * 50,
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "cut": good[:-30],
        "offset": h.torch_zip(site.path("o.pth"), h.mapping(("w", h.tensor(h.storage(), -1)))),
        "stride": h.torch_zip(
            site.path("s.pth"), h.mapping(("w", h.tensor(h.storage(), 0, (2, 2), (-2, 1))))
        ),
        "beyond": h.torch_zip(site.path("y.pth"), h.mapping(("w", h.tensor(h.storage(), 3)))),
    }
    for variant, content in files.items():
        path = content
        if isinstance(content, bytes):
            (path := site.path(f"{variant}.pth")).write_bytes(content)
        yield refused(variant, imported(site, path), also=not (site.root / "PWNED").exists())


@row("S11", "tensors, headers and members that are far larger than their file", "weak")
def bombs(site: Site) -> Iterator[Seen]:
    words = h.mapping(("w", h.tensor(h.storage(), 0, (1 << 40,), (0,))))
    files = {
        "2^40 elements of stride 0": h.torch_zip(site.path("a.pth"), words),
        "a key that is a path": h.torch_zip(
            site.path("b.pth"), h.mapping(("w", h.tensor(h.storage("../../etc/passwd"))))
        ),
        "a key that is a number": h.torch_zip(
            site.path("k.pth"), h.mapping(("w", h.tensor(h.storage(7))))
        ),
        "3.9 GiB of zeros": h.bomb(
            site.path("z.pth"),
            "archive/data/0",
            3900,
            {"archive/data.pkl": h.pickled(h.mapping(("w", h.tensor(h.storage()))))},
        ),
        "3.9 GiB of data.pkl": h.bomb(site.path("p.pth"), "archive/data.pkl", 3900),
    }
    with zipfile.ZipFile(site.path("c.npz"), "w") as file:
        file.writestr(
            "w.npy", h.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }")
        )
    files["npz header of 2^40"] = site.path("c.npz")
    files["npz, 3.9 GiB of zeros"] = h.bomb(site.path("d.npz"), "w.npy", 3900)
    for variant, path in files.items():
        with peak() as used:
            said = imported(site, path)
            gib = used()
        yield refused(
            variant, said, path.name, also=gib < 1, seen=f"{gib:.1f} GiB more, {said.seconds:.0f} s"
        )
    yield _mutated(site)


def _mutated(site: Site, count: int = 240) -> Seen:
    """Random changes of a good file of each format: a sentence, whatever the bytes mean."""
    from safetensors.numpy import save

    np.savez(site.path("m.npz"), w=np.arange(12.0).reshape(3, 4), b=np.zeros(3, np.float32))
    array = h.call(h.name("numpy", "ndarray"), h.value((1,)))
    scalar = h.call(
        h.name(MULTIARRAY, "scalar"), h.call(h.name("numpy", "dtype"), "f8"), h.text_bytes(bytes(8))
    )
    words = h.mapping(
        ("w", h.tensor(h.storage())),
        ("epoch", scalar),
        ("a", array),
        ("o", h.call(h.name("collections", "OrderedDict"))),
    )
    good = {
        ".pth": h.torch_zip(site.path("m.pth"), words).read_bytes(),
        ".npz": site.path("m.npz").read_bytes(),
        ".safetensors": save({"w": np.zeros((2, 3), np.float32)}),
        ".pt": h.pickled(words),
    }
    dice, raw = random.Random(0), []
    for k in range(count):
        ending = list(good)[k % len(good)]
        content = bytearray(good[ending])
        for _ in range(dice.randint(1, 6)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        (path := site.path(f"mutated{ending}")).write_bytes(bytes(content))
        said = imported(site, path)
        raw += [f"no. {k}: {said}"] if said.raw or said.code == 0 else []
    return Seen(f"{count} mutated files", not raw, f"{len(raw)} raw, first {raw[:1]}")


@row("S12", "npz files with objects and code", "pass")
def npz(site: Site) -> Iterator[Seen]:
    np.savez(site.path("object.npz"), w=np.array([{1: 2}], object))
    yield refused("object array", imported(site, site.path("object.npz")))
    for variant, header in (
        ("descr |O", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        (
            "code in the header",
            "{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }",
        ),
        ("negative shape", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        ("shape beyond the data", "{'descr': '<f4', 'fortran_order': False, 'shape': (99,), }"),
    ):
        with zipfile.ZipFile(path := site.path(f"{variant[:5].strip()}.npz"), "w") as file:
            file.writestr("w.npy", h.npy(header))
        yield refused(variant, imported(site, path))


@row("S13", "safetensors that lie", "pass")
def lying_safetensors(site: Site) -> Iterator[Seen]:
    def entry(dtype: str = "F32", shape=(4,), offsets=(0, 16)) -> dict:
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}

    for i, (variant, header, length) in enumerate(
        (
            ("overlap", {"a": entry(), "b": entry(offsets=(8, 24))}, None),
            ("beyond the file", {"a": entry(shape=(400,), offsets=(0, 1600))}, None),
            ("shape is a lie", {"a": entry(shape=(5,))}, None),
            ("unknown dtype", {"a": entry("F99")}, None),
            ("a million brackets", b'{"a":' + b"[" * 1_000_000, None),
            ("header of 2^62", {"a": entry()}, 1 << 62),
            ("offsets of 10^12", {"a": entry(offsets=(10**12, 10**12 + 16))}, None),
            ("negative shape", {"a": entry(shape=(-4,))}, None),
        )
    ):
        yield refused(
            variant,
            imported(site, h.safetensors(site.path(f"{i}.safetensors"), header, length=length)),
        )
