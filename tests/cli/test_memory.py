"""The heap that commands keep."""

import subprocess
import sys

import pytest

from modeling_cnnrnn.cli.memory import keep_heap


FAULTS = """
import ctypes
import resource
from modeling_cnnrnn.cli.memory import keep_heap

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
if keep_heap():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(library.malloc(100 * 2**20))
        ctypes.memset(block, 1, 100 * 2**20)
        library.free(block)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")
def test_memory_that_is_freed_is_used_again_without_the_kernel():
    # in a process of its own: where the heap of one cannot grow any more, glibc maps again whatever it is told
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    if not output:
        pytest.skip("this is no glibc, or an old one")
    assert int(output) < 100  # of 25,600 pages


def test_another_system_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_heap()
