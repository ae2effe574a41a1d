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
from genjax.training.compilation import convolution_options
ASKS
step = lambda x, _: (jnp.tanh(x @ jnp.full((SIZE, SIZE), 0.1)), None)
loop = lambda x: jax.lax.scan(step, x, None, length=100)[0]
loop = jax.jit(loop, compiler_options=convolution_options() if CONVOLUTIONS else None)
print("xla_cpu_small_call" in loop.lower(jnp.ones((1, SIZE))).compile().as_text())
"""
SAMPLING, TRAINING = "use_one_kernel_for_small_loops()", "use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)"
USERS_OWN = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1"


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


@pytest.mark.parametrize(
    ("asks", "size", "convolutions", "flags", "expected"),
    [
        (SAMPLING, 64, False, "", True),
        (SAMPLING, 64, True, "", False),
        (SAMPLING, 64, False, USERS_OWN, False),
        (SAMPLING, 1200, False, "", False),
        (TRAINING, 1200, False, "", True),
        (f"{SAMPLING}; {TRAINING}", 1200, False, "", True),
        (TRAINING, 64, True, "", False),
        (TRAINING, 2400, False, "", False),
    ],
)
def test_a_small_loop_is_one_kernel_and_a_larger_one_in_training_unless_the_environment_says_otherwise(
    asks, size, convolutions, flags, expected
):
    program = (
        COMPILES_A_LOOP.replace("ASKS", asks).replace("SIZE", str(size)).replace("CONVOLUTIONS", str(convolutions))
    )
    assert output(program, XLA_FLAGS=flags) == [str(expected)]
