"""Families of generative models, one module each, all with the same four names.

- `Config`: a frozen dataclass, the options of `train.py NAME`.
- `recommended(examples)`: steps, batch size and the like where the user does not say.
- `resolve(config, examples)`: the config with every default chosen; refuses what cannot work.
- `build(config, optimizer, examples)`: the `Method`.

One with schedules that span the training also has `for_steps(config, steps)`: the config for a training of so many steps.

`METHODS` is the dict that the scripts look a name up in.
"""

from types import ModuleType

from genjax.methods import (
    cnf,
    consistency,
    ddpm,
    edm,
    flow_matching,
    gan,
    latent_diffusion,
    made,
    ncsn,
    pixelcnn,
    realnvp,
    rectified_flow,
    score_sde,
    spline_flow,
    vae,
    wgan,
    wgan_gp,
)

METHODS: dict[str, ModuleType] = {
    "flow-matching": flow_matching,
    "rectified-flow": rectified_flow,
    "ddpm": ddpm,
    "edm": edm,
    "ncsn": ncsn,
    "score-sde": score_sde,
    "consistency": consistency,
    "latent-diffusion": latent_diffusion,
    "vae": vae,
    "gan": gan,
    "wgan": wgan,
    "wgan-gp": wgan_gp,
    "realnvp": realnvp,
    "spline-flow": spline_flow,
    "cnf": cnf,
    "made": made,
    "pixelcnn": pixelcnn,
}
