"""Read pickles of other programs without running anything of theirs: arrays and plain containers alone."""

import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


MAX_BYTES = 2**33  # of a file; the largest checkpoints of the field have 3 GB
MAX_DEPTH = 200  # of containers in containers
ARRAY_KINDS = "biufcSU"  # numbers and texts; an array of objects could hold anything
# what a file that is no pickle, or a damaged one, leads an unpickler to
FAULTS = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    RecursionError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


class Refused(pickle.UnpicklingError):
    """A pickle holds what no checkpoint needs; the message says what."""


class Deferred:
    """Something that is made when the whole file has been read."""

    def make(self) -> Any:
        raise NotImplementedError


class StandIn:
    """What a pickled object of some class held, in place of the object: its class is neither imported nor called."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused(f"an object has the state {type(state).__name__}, not a dictionary")
        self.__dict__.update(state)


class PlainDict(dict):
    """A dictionary of another kind, whose attributes are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype(Deferred):
    """A dtype of numbers or texts, from what numpy pickles of it."""

    def __init__(self, code: Any, *_: Any):
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.byte_order = "=" if state[1] in ("|", b"|") else _as_text(state[1])

    def make(self) -> np.dtype:
        dtype = np.dtype(_as_text(self.code))
        if dtype.kind not in ARRAY_KINDS or dtype.subdtype is not None:
            raise Refused(f"an array holds {dtype}, which is neither numbers nor text")
        return dtype.newbyteorder(self.byte_order)  # type: ignore[arg-type]


class _Array(Deferred):
    """An array, from what numpy pickles of it."""

    def __init__(self, *_: Any):  # a class, a shape and a type which the state replaces
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")

    def make(self) -> Any:
        return self.value


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Make an array of its bytes; numpy refuses a shape of another size."""
    if not isinstance(dtype, _Dtype):
        raise Refused("an array has no type")
    values = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.make())
    return values.reshape(shape, order=order)


def _make_scalar(dtype: Any, data: Any = b"") -> Any:
    return _from_bytes(data, dtype, (1,), "C")[0]


def _make_bytes(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _make_default_dict(*_: Any) -> dict:
    return {}  # what is not there is of no use here


def _make_stand_in(kind: Any, *_: Any) -> StandIn:
    if kind is not StandIn:
        raise Refused(f"it makes an object of {kind!r:.80}")
    return StandIn()


def _as_text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules by their names in Python 2
_NUMPY = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _make_scalar,
    "numeric._frombuffer": _from_bytes,
}
# what stands for each name that a pickle may use; types that containers are filled with are named and never called
_PLAIN: dict[str, Any] = {
    **{f"numpy.{core}.{name}": maker for core in ("core", "_core") for name, maker in _NUMPY.items()},
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _make_bytes,
    "copyreg._reconstructor": _make_stand_in,
    "collections.OrderedDict": PlainDict,
    "collections.Counter": PlainDict,
    "collections.defaultdict": _make_default_dict,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, complex)},
    **{f"builtins.{kind.__name__}": None for kind in (object, dict, list, tuple, int, float, bool, str)},
}


class RestrictedUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """
    Builds arrays, plain containers, and stand-ins for the classes that a format is known to pickle.

    Python's own unpickler and not that in C, which allocates as many places as a file says that it has.

    Args:
        file: opened for reading bytes.
        stand_ins: names of classes, `module.Class`, whose objects become [`StandIn`]s.
        names: what stands for further names.
    """

    read: Any  # of the file, `append` to the stack and the `stack` itself, while `load` runs
    append: Any
    stack: list
    dispatch: dict[int, Any] = {**pickle._Unpickler.dispatch}  # type: ignore[attr-defined, misc]  # noqa: RUF012

    def __init__(self, file: IO[bytes], stand_ins: Collection[str] = (), names: Mapping[str, Any] | None = None):
        super().__init__(file, encoding="latin1")
        self.names = {**_PLAIN, **dict.fromkeys(stand_ins, StandIn), **(names or {})}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{_PYTHON_3.get(module, module)}.{name}"
        if full_name not in self.names:
            raise Refused(f"it asks for {full_name}, which is neither an array nor a plain container")
        return self.names[full_name]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], Deferred | StandIn | PlainDict):
            raise Refused(f"it gives a state to {self.stack[-2]!r:.80}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # as many bytes as there are, not as there are said to be

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to something outside the file")


def unpickle(path: str | os.PathLike, stand_ins: Collection[str] = ()) -> Any:
    """
    Read a pickle of Python 2 or 3 that holds arrays and plain containers, and run nothing of it.

    Args:
        path: the file.
        stand_ins: names of classes, `module.Class`, whose objects may be there; each becomes a [`StandIn`].

    Returns:
        Dictionaries, lists, tuples, sets, numbers, texts (bytes of Python 2 as latin-1), arrays and stand-ins.

    Raises:
        ValueError: it is no pickle, is damaged or too large, or asks for any other class or function, which is named.
        OSError: it cannot be read.
    """
    check_size(path)
    try:
        with open(path, "rb") as file:
            return resolve(RestrictedUnpickler(file, stand_ins).load())
    except FAULTS as error:
        raise refusal(path, error) from error


def check_size(path: str | os.PathLike) -> None:
    """Raise a `ValueError` if a file fills the memory, as it is or unpacked."""
    size = Path(path).stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > MAX_BYTES:
        raise ValueError(
            f"'{path}' has {size / 2**30:.1f} GiB: checkpoints up to {MAX_BYTES / 2**30:.0f} GiB are read."
        )


def refusal(path: str | os.PathLike, error: Exception) -> ValueError:
    """Make the error of a file that is not read."""
    reason = str(error) if isinstance(error, Refused) else "it is damaged, or no checkpoint"
    return ValueError(f"'{path}' is not read, since {reason}: pass a checkpoint of the program that wrote it.")


def resolve(value: Any, seen: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """Make what is deferred in containers; each container once, however often it is held."""
    seen = {} if seen is None else seen
    if depth > MAX_DEPTH:
        raise Refused(f"more than {MAX_DEPTH} containers stand in each other")
    if id(value) in seen:
        return seen[id(value)]
    made: Any = value
    if isinstance(value, Deferred):
        made = seen[id(value)] = value.make()
    elif isinstance(value, dict):
        made = seen[id(value)] = {}
        for key, item in value.items():
            made[resolve(key, seen, depth + 1)] = resolve(item, seen, depth + 1)
    elif isinstance(value, list):
        made = seen[id(value)] = []
        made.extend(resolve(item, seen, depth + 1) for item in value)
    elif isinstance(value, tuple):
        made = seen[id(value)] = tuple(resolve(item, seen, depth + 1) for item in value)
    elif isinstance(value, StandIn):
        seen[id(value)] = value
        for name, item in vars(value).items():
            value.__dict__[name] = resolve(item, seen, depth + 1)
    return made
