"""The networks of `genjax.networks` written with torch as its users write them, and our parameters put into them.

Modules have the names of our parameters; images are `[B, C, H, W]` here.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def load(module: nn.Module, parameters: dict[str, np.ndarray]) -> nn.Module:
    """`module` with these parameters by path ("ResidualBlock_0/conv_in/kernel"); every one must find its place."""
    state = {}
    for path, value in parameters.items():
        *parents, leaf = path.split("/")
        if leaf == "kernel":
            leaf, value = "weight", value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        state[".".join([*parents, {"gain": "weight", "shift": "bias", "embedding": "weight"}.get(leaf, leaf)])] = value
    module.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return module


class MLP(nn.Module):
    """`genjax.networks.mlp`."""

    def __init__(
        self, features: tuple[int, ...], dimension: int = 2, time_features: int = 16, activation: str = "gelu"
    ) -> None:
        super().__init__()
        self.depth = len(features)
        self.activation = nn.GELU(approximate="tanh") if activation == "gelu" else nn.SELU()
        self.add_module("in", nn.Linear(dimension + time_features + 1, features[0]))
        for index in range(1, self.depth):
            self.add_module(f"hidden_{index - 1}", nn.Linear(features[index - 1], features[index]))
        self.out = nn.Linear(features[-1], dimension)
        frequencies = math.pi / 2 * torch.arange(1, time_features // 2 + 1, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`x [B, D]`, `t [B]`."""
        angles = t[:, None] * self.frequencies[None]  # type: ignore[index]
        hidden = getattr(self, "in")(torch.cat([x, t[:, None], angles.cos(), angles.sin()], dim=1))
        for index in range(self.depth - 1):
            hidden = getattr(self, f"hidden_{index}")(self.activation(hidden))
        out: Tensor = self.out(self.activation(hidden))
        return out


class ConditionEmbedding(nn.Module):
    """`genjax.networks.embeddings.ConditionEmbedding` of a time."""

    def __init__(self, features: int, frequency_features: int) -> None:
        super().__init__()
        half = frequency_features // 2
        frequencies = 1000.0 * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.time_in = nn.Linear(frequency_features, features)
        self.time_out = nn.Linear(features, features)

    def forward(self, t: Tensor) -> Tensor:
        """`t [B]` to `[B, features]`."""
        angles = t[:, None] * self.frequencies[None]  # type: ignore[index]
        hidden = F.silu(self.time_in(torch.cat([angles.cos(), angles.sin()], dim=1)))
        embedding: Tensor = self.time_out(hidden)
        return embedding


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Of `[B, N, 3 D]`, by torch's fused attention."""
    batch, tokens, features = qkv.shape
    query, keys, values = qkv.view(batch, tokens, 3, heads, features // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, keys, values)
    return mixed.transpose(1, 2).reshape(batch, tokens, features // 3)


class ResidualBlock(nn.Module):
    """Of the U-Net."""

    def __init__(self, before: int, channels: int, condition: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm_in = nn.GroupNorm(groups, before)
        self.conv_in = nn.Conv2d(before, channels, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Linear(before, channels) if before != channels else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C, H, W]`."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv_out(F.silu(F.group_norm(hidden, self.groups) * (1 + scale) + shift))
        if self.skip is not None:
            x = F.conv2d(x, self.skip.weight[:, :, None, None], self.skip.bias)
        return x + hidden


class Attention(nn.Module):
    """Of the U-Net."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.heads = channels // 64 if channels % 64 == 0 else 1
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, H, W]`."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        mixed = self.out(self_attention(self.qkv(tokens), self.heads))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """`genjax.networks.unet` of images 28x28 with its defaults."""

    def __init__(
        self, base: int = 32, multipliers: tuple[int, ...] = (1, 2, 2), blocks: int = 2, groups: int = 8
    ) -> None:
        super().__init__()
        self.blocks, self.levels, self.counts = blocks, len(multipliers), {}  # type: ignore[var-annotated]
        channels = [base * multiplier for multiplier in multipliers]
        condition, sides = 4 * base, [28 // 2**level for level in range(len(channels))]
        self.ConditionEmbedding_0 = ConditionEmbedding(condition, base)

        def block(before: int, after: int, side: int) -> int:
            self._add("ResidualBlock", ResidualBlock(before, after, condition, groups))
            if side == 7:
                self._add("Attention", Attention(after, groups))
            return after

        self._add("Conv", nn.Conv2d(1, channels[0], 3, padding=1))
        width, skips = channels[0], []
        for level, after in enumerate(channels):
            for _ in range(blocks):
                width = block(width, after, sides[level])
                skips.append(width)
            if level < len(channels) - 1:
                self._add("Conv", nn.Conv2d(width, width, 3, stride=2))
        block(width, width, sides[-1])
        self._add("ResidualBlock", ResidualBlock(width, width, condition, groups))
        for level in reversed(range(len(channels))):
            for _ in range(blocks):
                width = block(width + skips.pop(), channels[level], sides[level])
            if level:
                self._add("Conv", nn.Conv2d(width, channels[level - 1], 3, padding=1))
                width = channels[level - 1]
        self.GroupNorm_0 = nn.GroupNorm(groups, width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def _add(self, kind: str, module: nn.Module) -> None:
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        self.add_module(f"{kind}_{number}", module)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`x [B, 1, 28, 28]`, `t [B]`."""
        condition = F.silu(self.ConditionEmbedding_0(t))
        blocks = (getattr(self, f"ResidualBlock_{number}") for number in range(self.counts["ResidualBlock"]))
        attentions = (getattr(self, f"Attention_{number}") for number in range(self.counts["Attention"]))
        convolutions = (getattr(self, f"Conv_{number}") for number in range(self.counts["Conv"]))

        def block(hidden: Tensor) -> Tensor:
            hidden = next(blocks)(hidden, condition)
            return next(attentions)(hidden) if hidden.shape[2] == 7 else hidden

        hidden, skips = next(convolutions)(x), []
        for level in range(self.levels):
            for _ in range(self.blocks):
                hidden = block(hidden)
                skips.append(hidden)
            if level < self.levels - 1:
                hidden = next(convolutions)(F.pad(hidden, (0, 1, 0, 1)))
        hidden = block(hidden)
        hidden = next(blocks)(hidden, condition)
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks):
                hidden = block(torch.cat([hidden, skips.pop()], dim=1))
            if level:
                hidden = next(convolutions)(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.out(F.silu(self.GroupNorm_0(hidden)))
        return out


class Block(nn.Module):
    """Of the DiT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens `x [B, N, D]`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(condition))[:, None].chunk(6, dim=2)
        normed = F.layer_norm(x, (self.width,), eps=1e-6)
        x = x + gate_a * self.attended(self_attention(self.qkv(normed * (1 + scale_a) + shift_a), self.heads))
        normed = F.layer_norm(x, (self.width,), eps=1e-6)
        hidden = F.gelu(self.widen(normed * (1 + scale_m) + shift_m), approximate="tanh")
        return x + gate_m * self.narrow(hidden)


class DiT(nn.Module):
    """`genjax.networks.dit` of images 28x28."""

    def __init__(self, patch: int = 4, width: int = 256, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        from genjax.networks.embeddings import positions_2d

        self.patch, self.width, self.depth, self.side = patch, width, depth, 28 // patch
        self.embed = nn.Linear(patch * patch, width)
        self.ConditionEmbedding_0 = ConditionEmbedding(width, 256)
        for number in range(depth):
            self.add_module(f"Block_{number}", Block(width, heads))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch)
        positions = torch.tensor(positions_2d(self.side, self.side, width)).float()
        self.register_buffer("positions", positions[None], persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`x [B, 1, 28, 28]`, `t [B]`."""
        side, patch = self.side, self.patch
        cut = x.view(-1, side, patch, side, patch).transpose(2, 3)
        tokens = self.embed(cut.reshape(-1, side * side, patch * patch)) + self.positions
        condition = self.ConditionEmbedding_0(t)
        for number in range(self.depth):
            tokens = getattr(self, f"Block_{number}")(tokens, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=2)
        patches = self.out(F.layer_norm(tokens, (self.width,), eps=1e-6) * (1 + scale) + shift)
        return patches.view(-1, side, side, patch, patch).transpose(2, 3).reshape(x.shape)


NETWORKS: dict[str, Any] = {
    "mlp": lambda: MLP((256, 256, 256)),
    "mlp-64": lambda: MLP((64, 64, 64), activation="selu"),
    "unet": UNet,
    "dit": DiT,
}
