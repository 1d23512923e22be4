"""A restricted interpreter for pickle byte code that only builds plain values.

In: the byte code, a table of names that it may mention and, for tensors, a function that resolves
references. Out: the plain structure. There is no import, no attribute access, no method of a
foreign object and no call except those of the table, whose functions belong to medjax and only
build values. The BUILD instruction fills arrays from bytes of exactly their size; other attributes
it may set are dropped.

Everything is bounded: the bytes read, the steps, the containers, the depth of the structure and its
size if written out. Python's own unpickler (with its hooks) is not used, because it lets a file
call methods of the objects it made.
"""

import codecs
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from medjax.errors import ModelError
from medjax.weights.formats.values import Kind, Name, Unfilled, check, described, key

STEPS = 1 << 24
CONTAINERS = 1 << 21
LONG_BYTES = 64  # of one whole number
LINE = 1 << 20
_MARK, _STOPPED = object(), object()


class Source:
    """Bytes of a file from a position on, never more than the file has.

    Args:
      file: opened for reading in binary. size: of the file.
    """

    def __init__(self, file: Any, size: int):
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; `ModelError` if there are fewer."""
        if count > self.size:
            raise ModelError(
                "a value longer than the file",
                found=f"{count:,} bytes",
                expected=f"at most {self.size:,}",
            )
        found = self.file.read(count)
        if len(found) != count:
            raise ModelError("the file ends within a value")
        return found

    def line(self) -> bytes:
        """Up to the next line feed, which is removed."""
        found = self.file.readline(LINE)
        if not found.endswith(b"\n"):
            raise ModelError("the file ends within a line")
        return found[:-1]


class Machine:
    """Runs the code of one file.

    Args:
      names: (module, name) -> its replacement, see `Name`.
      reference: resolves a persistent reference; None: references are not allowed.
    """

    def __init__(
        self,
        source: Source,
        names: Mapping[tuple[str, str], Any],
        reference: Callable[[Any], Any] | None = None,
    ):
        self.source, self.names, self.reference = source, names, reference
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def load(self) -> Any:
        """The value that the code returns.

        `ModelError` for code that does not end, uses foreign names or builds no plain value.
        """
        for _ in range(STEPS):
            code = self.source.read(1)
            step = _STEPS_OF.get(code)
            if step is None:
                raise ModelError(
                    "the file holds an instruction that no weights need", found=described(code)
                )
            if step(self) is _STOPPED:
                found = self.pop()
                check(found)
                return found
        raise ModelError(
            "the file's structure is too long", expected=f"at most {STEPS:,} instructions"
        )

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ModelError("damaged structure: a value is missing")
        return self.stack.pop()

    def top(self, *kinds: type) -> Any:
        if not self.stack or type(self.stack[-1]) not in kinds:
            raise ModelError(
                "damaged structure: no container to put a value into",
                found=described(self.stack[-1]) if self.stack else "",
            )
        return self.stack[-1]

    def marked(self) -> list:
        """Removes and returns the values above the last mark."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise ModelError("damaged structure: no beginning of a container")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def push(self, value: Any) -> None:
        if type(value) not in (str, int, bool, float, bytes):
            self.containers += 1
            if self.containers > CONTAINERS:
                raise ModelError(
                    "the file's structure has too many parts", expected=f"at most {CONTAINERS:,}"
                )
        self.stack.append(value)

    def keep(self, slot: int) -> None:
        value = self.pop()
        self.stack.append(value)
        if type(value) is Unfilled:
            value.slots.append(slot)
        self.memo[slot] = value

    def recall(self, slot: int) -> None:
        if slot not in self.memo:
            raise ModelError("damaged structure: a reference to nothing", found=slot)
        self.stack.append(self.memo[slot])

    def mention(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in self.names:
            raise ModelError(
                "the file asks for something no weights need; it was not read further",
                found=f"{module[:80]}.{name[:80]}"
                if type(module) is str and type(name) is str
                else described((module, name)),
                fix="save the bare state dict (torch.save(network.state_dict(), file)) or "
                "safetensors",
            )
        self.push(Name(module, name, self.names[module, name]))

    def call(self) -> None:
        given, name = self.pop(), self.pop()
        if type(name) is not Name or not callable(name.make) or type(given) is not tuple:
            raise ModelError(
                "the file asks for a call that no weights need", found=described((name, given))
            )
        self.push(name.make(*given))

    def build(self) -> None:
        state, value = self.pop(), self.pop()
        if type(value) is Unfilled:
            made = value.build(state)
            for slot in value.slots:
                if self.memo.get(slot) is value:
                    self.memo[slot] = made
            self.push(made)
        elif type(value) is Kind:
            self.push(value.build(state))
        elif (
            type(value) is OrderedDict
        ):  # attributes of a state dict, which hold versions of layers
            self.stack.append(value)
        else:
            raise ModelError(
                "the file sets the inside of an object, which no weights need",
                found=described((value, state)),
            )

    def refer(self) -> None:
        given = self.pop()
        if self.reference is None:
            raise ModelError("an unknown reference", found=described(given))
        self.push(self.reference(given))

    def add_items(self, given: list) -> None:
        if len(given) % 2:
            raise ModelError("damaged structure: a key without a value")
        target = self.top(dict, OrderedDict)
        for k in range(0, len(given), 2):
            target[key(given[k])] = given[k + 1]

    def whole(self, size: int) -> int:
        if size > LONG_BYTES:
            raise ModelError(
                "a whole number that is too long",
                found=f"{size:,} bytes",
                expected=f"at most {LONG_BYTES}",
            )
        return int.from_bytes(self.source.read(size), "little", signed=True)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.source.read(struct.calcsize(form)))[0]

    def data(self, form: str) -> bytes:
        size = self.number(form)
        if size < 0:
            raise ModelError("a value of negative length", found=size)
        return self.source.read(size)

    def text(self, form: str) -> str:
        return self.data(form).decode("utf-8", "surrogatepass")

    def tuple_of(self, count: int) -> None:
        found = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(found)))

    def literal(self) -> bytes:
        """Text in quotes with escapes."""
        found = self.source.line().strip()
        if len(found) < 2 or found[:1] != found[-1:] or found[:1] not in (b'"', b"'"):
            raise ModelError("damaged structure: text without quotes")
        return codecs.escape_decode(found[1:-1])[0]

    def decimal(self) -> Any:
        line = self.source.line().strip().removesuffix(b"L")
        if line in (b"00", b"01"):
            return line == b"01"
        if len(line) > 2 * LONG_BYTES:
            raise ModelError("a whole number that is too long", found=f"{len(line):,} digits")
        return int(line)


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine) -> None:
    given = m.marked()
    m.top(list).extend(given)


def _additems(m: Machine) -> None:
    given = m.marked()
    m.top(set).update([key(v) for v in given])


def _setitem(m: Machine) -> None:
    value, name = m.pop(), m.pop()
    m.add_items([name, value])


def _dictionary(m: Machine) -> None:
    given = m.marked()
    m.push({})
    m.add_items(given)


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.mention(module, name)


def _pop(m: Machine) -> None:
    if not m.stack:
        raise ModelError("damaged structure: a value is missing")
    m.stack.pop()


def _again(m: Machine) -> None:
    value = m.pop()
    m.stack += [value, value]


def _protocol(m: Machine) -> None:
    if (version := m.number("<B")) > 5:
        raise ModelError("an unknown version of the format", found=version, expected="0 to 5")


_STEPS_OF: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: m.number("<Q"),  # frame
    b".": lambda m: _STOPPED,
    b"(": lambda m: m.stack.append(_MARK),
    b"0": _pop,
    b"1": lambda m: m.marked(),
    b"2": _again,
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": lambda m: m.push(m.decimal()),
    b"L": lambda m: m.push(m.decimal()),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(m.whole(m.number("<B"))),
    b"\x8b": lambda m: m.push(m.whole(m.number("<I"))),
    b"F": lambda m: m.push(float(m.source.line())),
    b"G": lambda m: m.push(m.number(">d")),
    b"S": lambda m: m.push(m.literal().decode("latin1")),
    b"T": lambda m: m.push(m.data("<i").decode("latin1")),
    b"U": lambda m: m.push(m.data("<B").decode("latin1")),
    b"B": lambda m: m.push(m.data("<I")),
    b"C": lambda m: m.push(m.data("<B")),
    b"\x8e": lambda m: m.push(m.data("<Q")),
    b"\x96": lambda m: m.push(m.data("<Q")),  # a byte array; never modified here
    b"V": lambda m: m.push(m.source.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(m.text("<I")),
    b"\x8c": lambda m: m.push(m.text("<B")),
    b"\x8d": lambda m: m.push(m.text("<Q")),
    b"]": lambda m: m.push([]),
    b"a": _append,
    b"e": _appends,
    b"l": lambda m: m.push(m.marked()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.push({}),
    b"d": _dictionary,
    b"s": _setitem,
    b"u": lambda m: m.add_items(m.marked()),
    b"\x8f": lambda m: m.push(set()),
    b"\x90": _additems,
    b"\x91": lambda m: m.push(frozenset(key(v) for v in m.marked())),
    b"g": lambda m: m.recall(m.decimal()),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"p": lambda m: m.keep(m.decimal()),
    b"q": lambda m: m.keep(m.number("<B")),
    b"r": lambda m: m.keep(m.number("<I")),
    b"\x94": lambda m: m.keep(len(m.memo)),
    b"c": lambda m: m.mention(m.source.line().decode("latin1"), m.source.line().decode("latin1")),
    b"\x93": _stack_global,
    b"R": lambda m: m.call(),
    b"\x81": lambda m: m.call(),  # an object from its class
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.refer(),
}
