"""The heap that commands keep."""

import sys

import pytest
import torch

from modeling_cnnrnn.cli.memory import keep_heap


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a library of Linux")
def test_memory_that_is_freed_is_used_again_without_the_kernel():
    import resource

    if not keep_heap():
        pytest.skip("this is no glibc, or an old one")
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(100 * 2**20, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[2] < 100  # of 25,600 pages


def test_another_system_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_heap()
