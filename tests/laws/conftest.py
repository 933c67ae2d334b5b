"""The C oracle (oracle.c), compiled once for all tests that call it."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def c(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler on PATH (cc, gcc or clang): the C oracle cannot be built")
    source = Path(__file__).with_name("oracle.c")
    library = tmp_path_factory.mktemp("oracle") / "oracle.so"
    flags = ["-O1", "-std=gnu11", "-Wall", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    built = subprocess.run(
        [*compiler.split(), *flags, "-o", str(library), str(source), "-lm"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.dense.restype = ctypes.c_int64
    return loaded


def _call(function, *arguments):
    """Arrays by address, int as int64, float as double, float32 as float, ctypes values as they are."""
    as_c = {int: ctypes.c_int64, float: ctypes.c_double, np.float32: ctypes.c_float}
    passed = []
    for a in arguments:
        if isinstance(a, np.ndarray):
            assert a.flags.c_contiguous
            passed.append(ctypes.c_void_p(a.ctypes.data))
        else:
            passed.append(as_c.get(type(a), lambda value: value)(a))
    return function(*passed)


@pytest.fixture(scope="session")
def call():
    """Calls a function of the oracle with arrays and numbers."""
    return _call
