"""A worker's C library keeps what is freed: the pages of the next step are not asked for, and cleared, again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, threading, torch
from sdsedit.batch.local import keep_memory

def faults():  # of pages, while tensors of 9, 20, 40 and 3 MiB come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [torch.ones(size << 18) for size in (9, 20, 40, 3)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def count():
    faults()
    given_back = faults()
    keep_memory()
    faults()
    print(given_back, faults())

torch.set_num_threads(1)
thread = threading.Thread(target=count)  # as the loops of pictures that are edited together are
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    if given_back < 1000:
        pytest.skip("this machine has large pages, or a C library that keeps memory by itself")
    assert kept < given_back / 20
