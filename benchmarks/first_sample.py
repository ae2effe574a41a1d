"""A process that imports a library, builds a U-Net and draws 16 images by 10 steps of DDIM, then ends: `compile` times it whole.

python -m benchmarks.first_sample genjax | diffusers
"""

import sys
from typing import Any


def with_genjax() -> Any:
    """The library's own network with the options that its methods choose."""
    import jax
    import jax.numpy as jnp

    from genjax import paths, predictions, samplers, times
    from genjax.networks.unet import unet
    from genjax.training import compilation

    net, path = unet(), paths.ddpm(paths.linear_betas(1000))
    params = net.init(jax.random.key(0), jnp.zeros((16, 28, 28, 1)), jnp.zeros(16))
    knots = paths.knots(path, times.discrete(times.trailing_indices(1000, 10), 1000))

    def run(params: Any, key: Any, knots: Any) -> Any:
        noise = jax.random.normal(key, (16, 28, 28, 1))
        denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
        return samplers.sample(samplers.ddim(), denoise, key, knots.sigma[0] * noise, knots)

    sample = jax.jit(run, compiler_options=compilation.convolution_options())
    return jax.block_until_ready(sample(params, jax.random.key(1), knots))


def with_diffusers() -> Any:
    """diffusers' scheduler and the same network in torch."""
    import torch
    from diffusers import DDIMScheduler

    from benchmarks.torch_networks import UNet

    net, scheduler = (
        UNet().eval(),
        DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False),
    )
    scheduler.set_timesteps(10)
    with torch.inference_mode():
        x = torch.randn(16, 1, 28, 28)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, ((t + 1) / 1000).expand(16)), t, x).prev_sample
    return x


if __name__ == "__main__":
    {"genjax": with_genjax, "diffusers": with_diffusers}[sys.argv[1]]()
