"""What a sampling step of DiT-XL/2 needs of an H100, on paper: nothing here was run on one.

    python -m benchmarks.roofline

The step is that of `samplers.sample` (DDIM, noise prediction) with the network in bfloat16 and the combination in float32, on
latents of 256x256 images (32x32x4, patch 2, width 1152, depth 28, 16 heads; Peebles & Xie 2023, arXiv 2212.09748, table 1).
Operations are counted by XLA's cost analysis of the lowered step. Bytes are the least that must move: each weight once a step.
Times are these over the peaks of NVIDIA's data sheet of the H100 SXM (989 TFLOP/s dense bfloat16, 3.35 TB/s). Kernels are counted
in the loop's body as XLA:CPU compiles it, at one and at two blocks. Writes the tables of `docs/accelerators.md`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from benchmarks import report
from benchmarks.frontier import DOCS
from genjax import paths, predictions, samplers
from genjax.networks.dit import dit
from genjax.typing import Knot

PEAK_FLOPS, PEAK_BYTES = 989e12, 3.35e12
SHAPE, BATCHES = (32, 32, 4), (1, 2, 8, 64)
XL = dict(patch=2, width=1152, heads=16, num_classes=1000, dtype=jnp.bfloat16)


def abstract(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """An array of this shape, without its values."""
    return jax.ShapeDtypeStruct(shape, dtype)


def lowered_step(depth: int, batch: int, steps: int, params_dtype: Any) -> Any:
    """`sample` of so many steps, lowered for abstract parameters of `params_dtype`."""
    net, path = dit(**XL, depth=depth), paths.cosine()
    x, t, label = abstract((batch, *SHAPE)), abstract((batch,)), abstract((batch,), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, label)
    params = jax.tree.map(lambda leaf: abstract(leaf.shape, params_dtype), params)

    def run(params: Any, x: Any, label: Any, knots: Any) -> Any:
        denoise = predictions.denoiser(net.bind(params, label), path, predictions.noise)
        return samplers.sample(samplers.ddim(), denoise, jax.random.key(0), x, knots)

    knots = Knot(*(abstract((steps + 1,)) for _ in range(3)))
    return jax.jit(run).lower(params, x, label, knots), params


def kernels_in_loop(text: str) -> dict[str, int]:
    """The instructions of the loop's body in compiled HLO that are kernels, by kind."""
    counts: dict[str, int] = {}
    for body in re.findall(r"body=%?([\w.\-]+)", text):
        block = re.search(rf"^%?{re.escape(body)} .*?^}}", text, flags=re.M | re.S)
        for kind in re.findall(r" (fusion|dot|custom-call|convert|copy|call)\(", block[0] if block else ""):
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def main() -> None:
    """Count, and write the table."""
    rows = []
    for batch in BATCHES:
        lowered, params = lowered_step(28, batch, 1, jnp.float32)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        flops = lowered.cost_analysis()["flops"]
        compute, weights, float32 = flops / PEAK_FLOPS, 2 * count / PEAK_BYTES, 4 * count / PEAK_BYTES
        bound = "arithmetic" if compute > weights else "reading the weights"
        rows.append(
            [
                str(batch),
                f"{flops / 1e9:.0f} GFLOP",
                f"{2 * count / 1e9:.2f} GB",
                f"{1e3 * compute:.2f} ms",
                f"{1e3 * weights:.2f} ms",
                f"{1e3 * float32:.2f} ms",
                bound,
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    shallow, deeper = (
        kernels_in_loop(lowered_step(depth, 1, 10, jnp.float32)[0].compile().as_text()) for depth in (1, 2)
    )
    a_block = sum(deeper.values()) - sum(shallow.values())
    kernels = [
        ["a block", str(a_block)],
        ["the rest: embeddings, last layer, sampler", str(sum(shallow.values()) - a_block)],
    ]
    print(kernels, flush=True)
    header = [
        "batch",
        "operations a step",
        "weights in bfloat16",
        "arithmetic",
        "reading them",
        "reading them in float32",
    ]
    report.write_table("roofline", [*header, "bound by"], rows, file=DOCS / "accelerators.md")
    report.write_table("kernels", ["of a step, XLA:CPU", "kernels"], kernels, file=DOCS / "accelerators.md")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
