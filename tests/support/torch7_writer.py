"""Write binary files of Torch7, by the description in its `File.lua`, `Tensor.c` and `Storage.c`."""

import struct
from typing import IO, Any

import numpy as np


class Object:
    """An object of a class of Torch7: its fields are a table."""

    def __init__(self, name: str, **fields: Any):
        self.name, self.fields = name, fields


class Closure:
    """A function, as its bytecode and what it refers to."""


class Writer:
    """
    Write one object.

    Numbers, texts, booleans and `None`; lists and dictionaries as tables; float arrays as tensors; an object twice is written
    once.

    Args:
        tensor: class of the tensors, `"Float"` or `"Cuda"`.
    """

    def __init__(self, file: IO[bytes], tensor: str = "Float"):
        self.file, self.tensor = file, tensor
        self.indices: dict[int, int] = {}
        self.alive: list[Any] = []

    def write(self, value: Any) -> None:
        if value is None:
            self.ints(0)
        elif isinstance(value, bool):
            self.ints(5, int(value))
        elif isinstance(value, int | float):
            self.ints(1)
            self.file.write(struct.pack("<d", value))
        elif isinstance(value, str):
            self.ints(2)
            self.text(value)
        else:
            self.reference(value)

    def reference(self, value: Any) -> None:
        is_table = isinstance(value, list | dict)
        self.ints(3 if is_table else 8 if isinstance(value, Closure) else 4)
        is_known = id(value) in self.indices
        index = self.indices.setdefault(id(value), len(self.indices) + 1)
        self.alive.append(value)
        self.ints(index)
        if is_known:
            return
        if is_table:
            items = dict(enumerate(value, 1)) if isinstance(value, list) else value
            self.ints(len(items))
            for key, item in items.items():
                self.write(key)
                self.write(item)
        elif isinstance(value, Closure):
            self.text("\x1bLJ bytecode")
            self.write([{"name": "upvalue", "value": 1}])
        elif isinstance(value, Object):
            self.texts("V 1", value.name)
            self.write(value.fields)
        else:
            self.tensor_of(value)

    def tensor_of(self, array: np.ndarray) -> None:
        self.texts("V 1", f"torch.{self.tensor}Tensor")
        self.ints(array.ndim)
        strides = [stride // array.itemsize for stride in array.strides]
        self.file.write(struct.pack(f"<{2 * array.ndim + 1}q", *array.shape, *strides, 1))
        self.ints(4, len(self.indices) + 1)
        self.indices[-len(self.indices)] = 0  # the storage is an object too
        self.texts("V 1", f"torch.{self.tensor}Storage")
        self.file.write(struct.pack("<q", array.size) + array.astype("<f4").tobytes())

    def ints(self, *values: int) -> None:
        self.file.write(struct.pack(f"<{len(values)}i", *values))

    def text(self, text: str) -> None:
        self.ints(len(text))
        self.file.write(text.encode("latin1"))

    def texts(self, *texts: str) -> None:
        for text in texts:
            self.text(text)
