"""A worker's C library keeps what is freed: the pages of the next step are not asked for, and cleared, again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sdsedit.batch.local import KEEP_MEMORY

FAULTS = """
import resource, threading, torch

def faults():  # of pages, while tensors of 9, 20, 40 and 3 MiB come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [torch.ones(size << 18) for size in (9, 20, 40, 3)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
thread = threading.Thread(target=lambda: print((faults(), faults())[1]))  # as loops that run together are
thread.start()
thread.join()
"""


def faults(**environment: str) -> int:
    own = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY} | environment
    done = subprocess.run([sys.executable, "-c", FAULTS], env=own, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads these variables")
def test_freed_memory_is_kept():
    given_back = faults()
    if given_back < 1000:
        pytest.skip("this machine has large pages, or a C library that keeps memory by itself")
    assert faults(**KEEP_MEMORY) < given_back / 20
