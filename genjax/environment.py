"""What is asked of XLA and of the C library before they start, which no option of a single `jit` can."""

import os
import platform
import sys

_SMALL_LOOPS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold={}"

SMALL_LOOPS = _SMALL_LOOPS.format(2**22)
"""A loop is compiled into one kernel if a step of it reads and writes so few bytes."""

SMALL_TRAINING_LOOPS = _SMALL_LOOPS.format(2**24)
"""The same where steps are of training: its optimizer goes through several times as many bytes for as little work."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Large buffers are asked for in huge pages."""


def use_one_kernel_for_small_loops(loops: str = SMALL_LOOPS) -> None:
    """Let XLA:CPU compile a loop whose steps touch little memory into one kernel; such settings of the environment win.

    It calls a kernel for each operation of a step otherwise, which is an eighth of the time of a perceptron 256 wide on one
    point and half of that of one 64 wide, and a third of a training step of the former on one point, the only batch whose products
    XLA puts into such a kernel. A loop of products of one row with 5 MiB of matrices takes 1.6 times as long there, so that
    sampling asks for less than training. XLA reads the environment when a process first computes: later it changes nothing.
    A convolution within such a kernel takes ten times as long: `training.compilation.convolution_options` keeps them out.

    Args:
        loops: `SMALL_LOOPS`, or `SMALL_TRAINING_LOOPS` in a process that trains, also after the former.
    """
    flags = os.environ.get("XLA_FLAGS", "").replace(SMALL_LOOPS, "")
    if "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {loops}".strip()


def small_loops_are_asked_for() -> bool:
    """Whether `use_one_kernel_for_small_loops` had its way."""
    flags = os.environ.get("XLA_FLAGS", "")
    return SMALL_LOOPS in flags or SMALL_TRAINING_LOOPS in flags


def use_huge_pages() -> None:
    """Start this process anew with its large buffers in huge pages; a setting of the environment wins.

    XLA:CPU asks for the memory of a step at every step, and the kernel hands it out page by page: 26,000 pages of 4 KiB for
    a U-Net on 16 images, a tenth of the time. With pages of 2 MiB its training takes 0.92 of the time, as does a transformer's on
    one image; 0.98 for 16 images, and for a perceptron on 1,024 points. Only glibc has the setting, and reads it when a process
    starts: call this before anything is imported that takes long. Where huge pages are switched off nothing changes.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] == "glibc" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, HUGE_PAGES)))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
