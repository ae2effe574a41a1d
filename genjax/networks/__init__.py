"""Networks behind `Net(init, apply)`: an MLP for points, a U-Net and a DiT for images, adapters for Linen and NNX."""

from genjax.networks.dit import dit
from genjax.networks.mlp import mlp
from genjax.networks.net import from_linen, from_nnx
from genjax.networks.unet import unet

__all__ = ["dit", "from_linen", "from_nnx", "mlp", "unet"]
