import os
import platform
import subprocess
import sys

import pytest

from genjax.environment import HUGE_PAGES

STARTS_ANEW = """
import os, sys
from genjax.environment import use_huge_pages
print(os.getpid(), flush=True)
use_huge_pages()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:], sep="\\n")
"""
COMPILES_A_LOOP = """
import jax, jax.numpy as jnp
from genjax.environment import *
LOOPS
step = lambda row, _: (jnp.tanh(row @ jnp.full((1200, 1200), 0.1)), None)
loop = jax.jit(lambda row: jax.lax.scan(step, row, None, length=100)[0])
print("xla_cpu_small_call" in loop.lower(jnp.ones((1, 1200))).compile().as_text())
"""


def output(program, *arguments, **environment):
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_a_process_starts_anew_with_huge_pages_and_its_arguments(before):
    first, second, tunables, *arguments = output(STARTS_ANEW, "--out", "a b", GLIBC_TUNABLES=before)
    assert first == second
    assert tunables == ":".join(filter(None, (before, HUGE_PAGES)))
    assert arguments == ["--out", "a b"]


def test_a_process_whose_environment_says_what_pages_it_wants_goes_on():
    _, *rest = output(STARTS_ANEW, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert rest == ["glibc.malloc.hugetlb=0"]


def test_a_process_that_trains_puts_larger_loops_into_one_kernel_than_one_that_samples():
    sampling, training = "use_one_kernel_for_small_loops()", "use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)"
    found = {
        loops: output(COMPILES_A_LOOP.replace("LOOPS", loops), XLA_FLAGS="")
        for loops in (sampling, training, f"{sampling}; {training}")
    }
    assert list(found.values()) == [["False"], ["True"], ["True"]]
