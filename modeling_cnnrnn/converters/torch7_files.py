"""Read the binary files of Torch7 (Lua's torch, `.t7`), by the description in its `File.lua`, `Tensor.c` and `Storage.c`."""

import math
import os
import struct
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from .unpickling import FAULTS, Refused, check_size, refusal


NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN, FUNCTION, OLD_CLOSURE, CLOSURE = range(9)
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Cuda": torch.float32,
    "CudaDouble": torch.float64,
    "CudaHalf": torch.float16,
    "CudaLong": torch.int64,
    "CudaInt": torch.int32,
    "CudaByte": torch.uint8,
}
FIRST_BYTES = b"\x03\0\0\0\x01\0\0\0"  # a table, the first object of the file: what every checkpoint is


@dataclass(eq=False)
class Table:
    """
    A table of Lua, or an object of a class of Torch7 with its fields.

    Attributes:
        name: the class, `"nn.Linear"`; empty for a table.
        items: fields by their names, elements of a list by their numbers from 1.
    """

    name: str = ""
    items: dict[Any, Any] = field(default_factory=dict)

    def __getitem__(self, key: Any) -> Any:
        return self.items[key]

    def get(self, key: Any, default: Any = None) -> Any:
        return self.items.get(key, default)

    def values(self) -> list[Any]:
        """Return the elements of a list."""
        return [self.items[i] for i in range(1, len(self.items) + 1) if i in self.items]


@dataclass
class _Place:
    """A container whose content is being read: `missing` pairs of a table, or the one table of an object's fields."""

    container: Table | None
    missing: int
    key: Any = None
    has_key: bool = False


def load_torch7(path: str | os.PathLike) -> Any:
    """
    Read a binary file that `torch.save` of Torch7 wrote. Functions in it become `None`.

    Returns:
        Numbers, texts (as latin-1), tensors, and [`Table`]s.

    Raises:
        ValueError: it is no such file, is damaged or too large.
        OSError: it cannot be read.
    """
    check_size(path)
    try:
        with open(path, "rb") as file:
            return _Reader(file).load()
    except (*FAULTS, RuntimeError) as error:
        raise refusal(path, error) from error


class _Reader:
    """Reads one object. Objects hold each other hundreds deep: what is open is kept on a stack of its own."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.known: dict[int, Any] = {}
        self.places: list[_Place] = []

    def load(self) -> Any:
        root = Table()
        self.places = [_Place(root, 1, "root", True)]
        while self.places:
            place = self.places[-1]
            if not place.missing:
                self.places.pop()
                continue
            value = self._value()  # of a container: empty yet, and the last place
            if place.container is None:  # what a function refers to
                place.missing -= 1
            elif place.container.name and not place.has_key:
                place.missing -= 1
                place.container.items = value.items  # the one table with the fields of an object
            elif not place.has_key:
                place.key, place.has_key = value, True
            else:
                place.container.items[place.key] = value
                place.has_key = False
                place.missing -= 1
        return root["root"]

    def _value(self) -> Any:
        """Read a value; a container is opened, and filled by what follows."""
        kind = self._int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            (number,) = struct.unpack("<d", self._bytes(8))
            return int(number) if number.is_integer() else number
        if kind == STRING:
            return self._text()
        if kind == BOOLEAN:
            return bool(self._int())
        if kind == FUNCTION:
            self._text()
            self.places.append(_Place(None, 1))
            return None
        if kind not in (TABLE, OBJECT, OLD_CLOSURE, CLOSURE):
            raise ValueError(f"no type of Torch7: {kind}")
        index = self._int()
        if index not in self.known:
            self._open(kind, index)
        return self.known[index]

    def _open(self, kind: int, index: int) -> None:
        """Begin an object that the file has not had before."""
        if kind == TABLE:
            self.known[index] = Table()
            self.places.append(_Place(self.known[index], self._int()))
        elif kind == OBJECT:
            name = self._text()
            if name.startswith("V "):  # the version of the class
                name = self._text()
            self.known[index] = self._object(name, index)
        else:
            self._text()
            self.known[index] = None
            self.places.append(_Place(None, 1))

    def _object(self, name: str, index: int) -> Any:
        kind = name.removeprefix("torch.")
        if kind.removesuffix("Storage") in DTYPES:
            dtype = DTYPES[kind.removesuffix("Storage")]
            data = self._bytes(self._long() * dtype.itemsize)
            return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if kind.removesuffix("Tensor") in DTYPES:
            dimensions = self._int()
            size, stride = ([self._long() for _ in range(dimensions)] for _ in ("size", "stride"))
            offset = self._long() - 1
            storage = self._value()
            if not dimensions or storage is None:
                return torch.empty(0)
            if math.prod(size) > storage.numel():
                raise Refused("a tensor is larger than what is stored of it")
            return storage.as_strided(size, stride, offset)
        table = Table(name)
        self.places.append(_Place(table, 1))
        return table

    def _text(self) -> str:
        return self._bytes(self._int()).decode("latin1")

    def _int(self) -> int:
        return int.from_bytes(self._bytes(4), "little", signed=True)

    def _long(self) -> int:
        return int.from_bytes(self._bytes(8), "little", signed=True)

    def _bytes(self, size: int) -> bytearray:
        data = bytearray(self.file.read(size)) if size >= 0 else bytearray()
        if len(data) != size:
            raise EOFError("the file is cut off")
        return data
