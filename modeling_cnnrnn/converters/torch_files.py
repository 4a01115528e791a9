"""Read what `torch.save` wrote, of all versions since 0.2, without running anything of it."""

import math
import os
import re
import zipfile
from collections.abc import Collection
from typing import IO, Any

import torch

from .unpickling import FAULTS, Deferred, Refused, RestrictedUnpickler, StandIn, check_size, refusal, resolve


MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # that files of torch before 1.6 begin with
MAGIC_BYTES = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# every layer and every optimizer of torch, by the names under which pickles know them
TORCH_CLASSES = tuple(
    sorted(
        f"{kind.__module__}.{kind.__name__}"
        for kind in (*vars(torch.nn).values(), *vars(torch.optim).values())
        if isinstance(kind, type) and kind.__module__.startswith(("torch.nn.modules", "torch.optim"))
    )
)


def load_torch(path: str | os.PathLike, stand_ins: Collection[str] = ()) -> Any:
    """
    Read what `torch.save` wrote.

    Args:
        path: the file.
        stand_ins: names of classes, `module.Class`, whose objects may be there, such as modules that were saved whole;
            each becomes a [`StandIn`].

    Raises:
        ValueError: it is no such file, is damaged or too large, or asks for any other class or function, which is named.
        OSError: it cannot be read.
    """
    check_size(path)
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return _load_legacy(file, stand_ins)
        classes: list[Any] = [(StandIn, name) for name in stand_ins]
        classes += [(_make_default_dict, "collections.defaultdict"), (dict, "builtins.dict"), (set, "builtins.set")]
        with torch.serialization.safe_globals(classes):
            content = torch.load(path, map_location="cpu", weights_only=True)
        for value in content.values() if isinstance(content, dict) else [content]:
            if isinstance(value, torch.Tensor) and value.nbytes > value.untyped_storage().nbytes():
                raise Refused("a tensor is larger than what is stored of it")
        return content
    except (*FAULTS, RuntimeError) as error:
        if unknown := re.search(r"GLOBAL ([\w.]+)", str(error)):
            error = Refused(f"it asks for {unknown[1]}, which is neither a tensor nor a plain container")
        elif "Weights only" in str(error):  # followed by advice to run what is in it
            error = Refused("it holds something that is neither a tensor nor a plain container")
        raise refusal(path, error) from error


def _make_default_dict(*_: Any) -> dict:
    return {}


class _Storage:
    """The numbers of tensors, which stand at the end of the file."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.values = torch.empty(0)


class _Tensor(Deferred):
    """A tensor, from what torch pickles of it."""

    def __init__(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def make(self) -> torch.Tensor:
        if math.prod(self.size) > self.storage.values.numel():
            raise Refused("a tensor is larger than what is stored of it")
        return self.storage.values.as_strided(self.size, self.stride, self.offset).clone()


def _keep(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_NAMES = {
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _keep,
    "torch.nn.parameter.Parameter": _keep,
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}Storage": dtype for name, dtype in STORAGES.items()},
}


class _LegacyUnpickler(RestrictedUnpickler):
    """Notes the storages that tensors refer to; of a module that was saved whole, the source beside it is passed over."""

    def __init__(self, file: IO[bytes], stand_ins: Collection[str]):
        super().__init__(file, stand_ins, _NAMES)
        self.storages: dict[Any, _Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise Refused("it refers to something outside the file")
        return self.storages.setdefault(pid[2], _Storage(pid[1]))


def _load_legacy(file: IO[bytes], stand_ins: Collection[str]) -> Any:
    """Read a file of torch before 1.6: four pickles, then the keys of storages and their numbers."""
    if RestrictedUnpickler(file).load() != MAGIC_NUMBER:
        raise ValueError("no file of torch")
    for _ in ("protocol version", "sizes of numbers"):
        RestrictedUnpickler(file).load()
    unpickler = _LegacyUnpickler(file, stand_ins)
    content = unpickler.load()
    for key in RestrictedUnpickler(file).load():
        storage = unpickler.storages[key]
        size = int.from_bytes(file.read(8), "little") * storage.dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise EOFError("a storage is cut off")
        storage.values = torch.frombuffer(bytearray(data), dtype=storage.dtype) if size else storage.values
    return resolve(content)
