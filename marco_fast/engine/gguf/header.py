"""Reads what a GGUF file says of itself: its fields, and where its tensors are; no weight.

Nothing in the file is believed: every length is compared with what is left of the file before
anything of that length is made.
"""

import mmap
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marco_fast.engine.gguf.blocks import BLOCKS, OTHER_TYPES
from marco_fast.engine.gguf.file import GgufFile, GgufTensor, told
from marco_fast.errors import ModelError

__all__ = ["is_gguf", "read_gguf"]

MAGIC = b"GGUF"
VERSION = 3
# struct's letters for the types of a field; 8 is a text, 9 an array.
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
LONGEST_NAME = 1 << 16  # bytes, of a field or a tensor
MOST_DIMENSIONS = 4
DEEPEST = 8  # arrays within an array, of a field
TYPES = {block.type: kind for kind, block in BLOCKS.items()}
SPLIT = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$", re.DOTALL)
MOST_PARTS = 1000


def is_gguf(path: Path) -> bool:
    """Whether a file's name, or what it begins with, says that it is one.

    Raises:
        ModelError: a file of such a name is not there or is none, or it cannot be read.
    """
    try:
        named = path.suffix.lower() == ".gguf" and not path.is_dir()
        if not path.is_file():
            if named:
                got = "what is no file" if path.exists() else "no such file"
                raise ModelError(f"expected a GGUF file {str(path)!r}, got {got}")
            return False
        with path.open("rb") as file:
            return named or file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(
            f"expected a readable model {str(path)!r}, got: {error.strerror}"
        ) from error


def read_gguf(path: Path) -> GgufFile:
    """The header of a file; where it is the first part of a split one, the tensors of all parts.

    Raises:
        ModelError: it is no GGUF of version 3, it is cut off, or what it says of itself cannot be.
    """
    first = _Header(path).read()
    count = first.fields.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return first
    named = SPLIT.match(path.name)
    if not named or int(named[2]) != 1 or int(named[3]) != count or count > MOST_PARTS:
        raise ModelError(
            f"expected the first of {count} parts, named ...-00001-of-{count:05}.gguf and beside "
            f"the others, got {str(path)!r}"
        )
    tensors = dict(first.tensors)
    for part in range(2, count + 1):
        other = path.with_name(f"{named[1]}-{part:05}-of-{count:05}.gguf")
        if not other.is_file():
            raise ModelError(f"expected all {count} parts of {str(path)!r}, got no {other.name!r}")
        for name, tensor in _Header(other).read().tensors.items():
            if name in tensors:
                raise first.refusal("each tensor once", f"{name!r} in two parts")
            tensors[name] = tensor
    wanted = first.fields.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise first.refusal(f"{wanted} tensors in all parts", f"{len(tensors)}")
    return first._replace(tensors=tensors)


class _Header:
    """Reads one file from its begin to where its tensors' bytes begin."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0

    def read(self) -> GgufFile:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < len(MAGIC) + 20:
                    file.seek(0)
                    raise self._refusal(f"a file of {len(file.read())} bytes")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.data:
                    return self._read()
        except struct.error:
            raise self._cut_off() from None
        except UnicodeDecodeError as error:
            raise self._refusal(f"a text that is not UTF-8 ({error.reason})") from error
        except OSError as error:
            raise self._refusal(f"{error.strerror or error}") from error

    def _refusal(self, got: str) -> ModelError:
        return ModelError(f"expected a GGUF file {str(self.path)!r}, got {got}")

    def _cut_off(self) -> ModelError:
        size = self.path.stat().st_size
        return self._refusal(f"one that is cut off, or of which a length is wrong ({size} bytes)")

    def _read(self) -> GgufFile:
        magic, version, tensors, fields = self._unpack("4sIQQ")
        if magic != MAGIC:
            raise self._refusal(f"one that begins with {magic!r} in place of {MAGIC!r}")
        if version != VERSION:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            order = "of the other byte order (big endian)" if swapped in (2, VERSION) else ""
            got = order or f"of version {version}, where {VERSION} is read"
            raise self._refusal(f"one {got}: convert the model again")
        values: dict[str, Any] = {}
        for _ in range(self._fitting(fields, 13)):
            name, kind = self._name(), self._unpack("I")[0]
            if name in values:
                raise self._refusal(f"one that has the field {name!r} twice")
            values[name] = self._value(name, kind, DEEPEST)
        found = [self._tensor() for _ in range(self._fitting(tensors, 24))]
        return GgufFile(self.path, values, self._placed(values, found))

    def _unpack(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self.data, self.at)
        self.at += struct.calcsize(f"<{letters}")
        return values

    def _fitting(self, count: int, size: int) -> int:
        """A number of things of at least so many bytes, if the file has room for them."""
        if count * size > len(self.data) - self.at:
            raise self._cut_off()
        return count

    def _text(self) -> str:
        size = self._fitting(self._unpack("Q")[0], 1)
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def _name(self) -> str:
        (size,) = struct.unpack_from("<Q", self.data, self.at)
        if not 0 < size < LONGEST_NAME:
            raise self._refusal(f"one with a name of {size} bytes at byte {self.at}")
        return self._text()

    def _value(self, name: str, kind: int, deepest: int) -> Any:
        if kind in NUMBERS:
            return self._unpack(NUMBERS[kind])[0]
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            raise self._refusal(f"one whose field {name!r} is of the unknown type {kind}")
        of, count = self._unpack("IQ")
        if of in NUMBERS:
            self._fitting(count, struct.calcsize(f"<{NUMBERS[of]}"))
            return [*self._unpack(f"{count}{NUMBERS[of]}")]
        if of == ARRAY and deepest:
            return [self._value(name, of, deepest - 1) for _ in range(self._fitting(count, 12))]
        if of != TEXT:
            raise self._refusal(f"one whose field {name!r} is an array of the type {of}")
        return [self._text() for _ in range(self._fitting(count, 8))]

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Name, shape, type and offset."""
        name, dimensions = self._name(), self._unpack("I")[0]
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._refusal(f"one whose tensor {name!r} has {dimensions} dimensions")
        shape = self._unpack(f"{dimensions}Q")[::-1]
        kind, offset = self._unpack("IQ")
        if kind not in TYPES:
            got = OTHER_TYPES.get(kind, f"the unknown type {kind}")
            raise ModelError(
                f"expected weights in {', '.join(BLOCKS)}, got {got} in {name!r} of "
                f"{str(self.path)!r}: take the model's Q4_K_M, Q5_K_M, Q6_K or Q8_0 file"
            )
        inputs = BLOCKS[TYPES[kind]].inputs
        if 0 in shape or shape[-1] % inputs or (inputs > 1 and dimensions != 2):
            raise self._refusal(
                f"one whose tensor {name!r} has the shape {shape}, in {TYPES[kind]} with blocks "
                f"of {inputs} inputs"
            )
        return name, shape, TYPES[kind], offset

    def _placed(self, fields: dict[str, Any], found: Iterable[Any]) -> dict[str, GgufTensor]:
        """The tensors, each in its own bytes of the file."""
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._refusal(f"one whose general.alignment is {told(alignment)}")
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end = 0
        for name, shape, kind, offset in sorted(found, key=lambda each: each[3]):
            tensor = GgufTensor(name, shape, kind, self.path, begin + offset)
            if name in tensors:
                raise self._refusal(f"one that has the tensor {name!r} twice")
            if offset % alignment or offset < end:
                got = "not aligned" if offset % alignment else "within another"
                raise self._refusal(f"one whose tensor {name!r} is {got} (offset {offset})")
            end = offset + tensor.size
            if begin + end > len(self.data):
                raise self._refusal(
                    f"one that is cut off: {len(self.data)} bytes, and the tensor {name!r} ends at "
                    f"{begin + end}"
                )
            tensors[name] = tensor
        return tensors
