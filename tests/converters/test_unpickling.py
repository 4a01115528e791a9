"""Pickles and torch files of others: what they hold is read, and what they would run is refused by its name."""

import collections
import functools
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from modeling_cnnrnn.converters import unpickling
from modeling_cnnrnn.converters.files import open_checkpoint
from modeling_cnnrnn.converters.torch_files import TORCH_CLASSES, load_torch
from modeling_cnnrnn.converters.unpickling import StandIn, unpickle


class Call:
    """Pickled as a call of any function, which a plain unpickler makes."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.fixture
def write(tmp_path):
    """Write a file of these bytes, or of a pickle of this value."""

    def write(value, protocol: int = 4):
        path = tmp_path / "checkpoint.p"
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
        return path

    return write


CONTENT = {
    "matrix": np.arange(6, dtype=np.float64).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "scalar": np.float64(1.5),
    "words": np.array(["a", "dog"]),
    "nested": [({"a": (1, 2.5, None, True)},), "Wörter", b"\x00\xff", {3, 4}],
    "ordered": collections.OrderedDict(b=1, a=2),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_are_read_from_every_protocol(write, protocol):
    read = unpickle(write(CONTENT, protocol))
    assert list(read) == list(CONTENT)
    for name in ("matrix", "fortran", "big_endian", "words"):
        assert read[name].dtype == CONTENT[name].dtype
        np.testing.assert_array_equal(read[name], CONTENT[name])
    assert read["scalar"] == 1.5
    assert read["nested"] == CONTENT["nested"]
    assert read["ordered"] == {"b": 1, "a": 2}


def test_a_pickle_of_python_2_is_read(write):
    """`pickle.dumps({'w': numpy.array([[1., 2.]]), 'n': u'\xe4', 'x': numpy.float64(0.5)})` of Python 2.7, protocol 0."""
    path = write(
        b"(dp0\nS'x'\np1\ncnumpy.core.multiarray\nscalar\np2\n(cnumpy\ndtype\np3\n(S'f8'\np4\nI0\nI1\ntp5\nRp6\n(I3\n"
        b"S'<'\np7\nNNNI-1\nI-1\nI0\ntp8\nbS'\\x00\\x00\\x00\\x00\\x00\\x00\\xe0?'\np9\ntp10\nRp11\nsS'w'\np12\n"
        b"cnumpy.core.multiarray\n_reconstruct\np13\n(cnumpy\nndarray\np14\n(I0\ntp15\nS'b'\np16\ntp17\nRp18\n(I1\n(I1\n"
        b"I2\ntp19\ng6\nI00\nS'\\x00\\x00\\x00\\x00\\x00\\x00\\xf0?\\x00\\x00\\x00\\x00\\x00\\x00\\x00@'\np20\ntp21\n"
        b"bsS'n'\np22\nV\xe4\np23\ns."
    )
    read = unpickle(path)
    np.testing.assert_array_equal(read["w"], [[1.0, 2.0]])
    assert (read["x"], read["n"]) == (0.5, "ä")


PAYLOADS = {
    "system": (Call(os.system, "touch victim"), f"{os.system.__module__}.system"),
    "eval": (Call(eval, "open('victim', 'w')"), "builtins.eval"),
    "getattr": (Call(getattr, "", "join"), "builtins.getattr"),
    "open": (Call(open, "victim", "w"), "io.open"),
    "partial": (functools.partial(eval, "open('victim', 'w')"), "functools.partial"),
    "numpy loads": (Call(np.load, "victim"), "numpy.load"),
    "numpy memory maps": (Call(np.memmap, "victim", "u1", "w+", 0, (1,)), "numpy.memmap"),
    "code behind weights": ({"weights": np.ones(2), "more": [Call(os.system, "touch victim")]}, "system"),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_run_is_refused_by_its_name(write, tmp_path, monkeypatch, name, protocol):
    payload, culprit = PAYLOADS[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=culprit.replace(".", r"\.")) as error:
        unpickle(write(payload, protocol))
    assert "checkpoint.p" in str(error.value)
    assert not (tmp_path / "victim").exists()


def test_an_array_of_objects_that_holds_a_call_is_refused(write):
    array = np.array([None], dtype=object)
    array[0] = Call(os.system, "true")
    with pytest.raises(ValueError, match="system"):
        unpickle(write(array))
    with pytest.raises(ValueError, match="neither numbers nor text"):
        unpickle(write(np.array([None], dtype=object)))


def test_numpys_own_reducers_make_nothing_but_arrays(write):
    """`_reconstruct` makes an object of any class that it is given, `scalar` unpickles what it is given."""
    reconstruct = np.array([1.0]).__reduce__()[0]
    with pytest.raises(ValueError, match="subprocess"):
        unpickle(write(b"cnumpy.core.multiarray\n_reconstruct\n(csubprocess\nPopen\n(I0\ntS'b'\ntR."))
    assert reconstruct.__name__ == "_reconstruct"
    inner = pickle.dumps(Call(os.system, "true"))
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRC" + bytes([len(inner)]) + inner + b"tR."
    )
    with pytest.raises(ValueError, match="neither numbers nor text"):
        unpickle(write(scalar))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(CONTENT)[:-9],
        b"\x80\x04r\xff\xff\xff\x7f.",  # a place of the memo that takes 16 GB
        b"(lp0\n" + b"(l" * 5000 + b"a" * 5000 + b".",
        b"(" * 3 + b"t" * 3 + b"Pid\n.",
        pickle.dumps(np.ones(4)).replace(struct.pack("<4d", 1, 1, 1, 1), struct.pack("<3d", 1, 1, 1)),
    ],
    ids=["empty", "text", "cut", "memo", "deep", "persistent", "shape"],
)
def test_what_is_damaged_is_refused_in_one_sentence(write, data):
    with pytest.raises(ValueError, match=r"checkpoint\.p.*pass a checkpoint of the program that wrote it\.$"):
        unpickle(write(data))


def test_what_stands_for_a_name_is_not_changed(write):
    defaults = unpickling._make_scalar.__defaults__
    state = b"(N}S'__defaults__'\n(S'x'\ntst"  # (None, {"__defaults__": ("x",)})
    with pytest.raises(ValueError, match="gives a state to"):
        unpickle(write(b"cnumpy.core.multiarray\nscalar\n" + state + b"b."))
    assert unpickling._make_scalar.__defaults__ == defaults


def test_containers_that_hold_each_other_many_times_take_no_time(write):
    value = ()
    for _ in range(100):
        value = (value, value)  # 2^100 places, 100 tuples
    read = unpickle(write(value))
    assert read[0] is read[1]


def test_a_file_that_fills_the_memory_is_refused(write, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="GiB"):
        unpickle(write(np.ones(100)))


def test_an_archive_that_unpacks_to_more_than_it_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"0" * 20_000)
    with pytest.raises(ValueError, match="GiB"):
        load_torch(tmp_path / "bomb.pth")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_module_that_was_saved_whole_is_read_without_its_class(tmp_path, is_zip):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    path = tmp_path / "whole.pth"
    optimizer = torch.optim.Adam(module.parameters())
    torch.save({"model": module, "optimizer": optimizer}, path, _use_new_zipfile_serialization=is_zip)
    read = open_checkpoint(str(path), ())
    assert isinstance(read["model"], StandIn)
    weight = read["model"]._modules["0"]._parameters["weight"]
    assert torch.equal(weight, module[0].weight)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.\w+\.\w+"):
        load_torch(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_torch_file_that_would_run_something_is_refused_by_its_name(tmp_path, is_zip):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(2), "more": Call(eval, "1")}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"model\.pth.*eval"):
        open_checkpoint(str(path), ())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.pth.*(damaged|eval)"):
        load_torch(path, TORCH_CLASSES)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_tensor_that_repeats_its_storage_until_the_memory_is_full_is_refused(tmp_path, is_zip):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(1).expand(2**40)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match="larger than what is stored"):
        load_torch(path)
