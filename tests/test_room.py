"""Memory: what is free, and what a process keeps."""

import platform
import subprocess
import sys

import pytest

UPDATES = """
import resource, sys
import numpy
from rl_lab.core import room

def update():
    work = [numpy.ones(2**21) for _ in range(3)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if "keep" in sys.argv:
    room.keep_freed_memory()
update()
before = faults()
for _ in range(5):
    update()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_an_update_takes_the_memory_that_the_one_before_it_freed():
    asked_anew, kept = (
        int(subprocess.run([sys.executable, "-c", UPDATES, *words], check=True, capture_output=True, text=True).stdout)
        for words in ([], ["keep"])
    )
    pages = 2**21 * 8 // 4096  # of one block
    assert kept < 100 < pages < asked_anew
