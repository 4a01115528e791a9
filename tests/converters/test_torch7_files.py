"""Files of Torch7: what the writer of the tests wrote is read, and what is damaged is refused."""

import io
import struct

import numpy as np
import pytest
import torch
from support.torch7_writer import Closure, Object, Writer

from modeling_cnnrnn.converters.torch7_files import FIRST_BYTES, Table, load_torch7


@pytest.fixture
def write(tmp_path):
    """Write a file of a value, or of these bytes."""

    def write(value, tensor: str = "Float"):
        path = tmp_path / "model.t7"
        buffer = io.BytesIO()
        if not isinstance(value, bytes):
            Writer(buffer, tensor).write(value)
        path.write_bytes(value if isinstance(value, bytes) else buffer.getvalue())
        return path

    return write


@pytest.mark.parametrize("tensor", ["Float", "Cuda"])
def test_tables_objects_and_tensors_are_read(write, tensor):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    linear = Object("nn.Linear", weight=weight, bias=weight[0].copy(), hook=Closure())
    read = load_torch7(write({"a": [linear, linear, 2, 2.5, "text", True, None], 3: {linear: "key"}}, tensor))
    first, second, *rest = (read["a"].items[i] for i in range(1, 8))
    assert first is second
    assert (first.name, first["hook"], rest) == ("nn.Linear", None, [2, 2.5, "text", True, None])
    assert torch.equal(first["weight"], torch.from_numpy(weight))
    assert read[3].items == {first: "key"}


def test_tables_in_tables_thousands_deep_are_read(write):
    value = (
        FIRST_BYTES
        + struct.pack("<i", 1)
        + b"".join(struct.pack("<idiii", 1, 1.0, 3, index, 1) for index in range(2, 5000))
    )
    value += struct.pack("<idi", 1, 1.0, 0)
    table, depth = load_torch7(write(value)), 0
    while isinstance(table, Table):
        table, depth = table.get(1), depth + 1
    assert depth == 4999


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cut", lambda data: data[:-5]),
        ("another type", lambda data: data[:12] + struct.pack("<i", 99) + data[16:]),
        ("a text of negative length", lambda data: data[:16] + struct.pack("<i", -1) + data[20:]),
        ("a storage larger than the file", lambda data: data.replace(struct.pack("<q", 77), struct.pack("<q", 78))),
        ("no file of Torch7", lambda data: b"\x09" * 40),
    ],
)
def test_what_is_damaged_is_refused_in_one_sentence(write, name, change):
    path = write({"weight": np.ones(77, dtype=np.float32)})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.t7' is not read"):
        load_torch7(path)


def test_a_tensor_that_repeats_its_storage_until_the_memory_is_full_is_refused(write):
    path = write({"weight": np.ones(77, dtype=np.float32)})
    size_and_stride = struct.pack("<2q", 77, 1)
    assert path.read_bytes().count(size_and_stride) == 1
    path.write_bytes(path.read_bytes().replace(size_and_stride, struct.pack("<2q", 2**40, 0)))
    with pytest.raises(ValueError, match="larger than what is stored"):
        load_torch7(path)
