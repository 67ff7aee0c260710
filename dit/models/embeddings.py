"""Embeddings of times, class ids and positions. B images, T tokens, D features."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

SMOOTHING = 250.0
"""Deviation of times, of 0 … 1000, over which the waves of an interval are means."""


class Condition(NamedTuple):
    """Embedded time and class, or time and text; each kind of block reads the part it needs."""

    vector: Tensor  # [B, D]: time + class, or time alone
    tokens: Tensor | None = None  # [B, S, D]: time and class, or text
    mask: Tensor | None = None  # bool [B, S]: false at padding
    rotation: Tensor | None = None  # [2, T, d / 2] of the image's tokens, for rotary positions
    modulation: Tensor | None = None  # [B, 6, D]: shifts, scales and gates, for adaln-single

    def at(self, keep: Tensor) -> "Condition":
        """Return the condition of some tokens of each image, [B, K]."""
        if self.rotation is None:
            return self
        return self._replace(rotation=self.rotation[:, keep][:, :, None])  # [2, B, 1, K, d / 2]


def time_and_class(time: Tensor, label: Tensor) -> Condition:
    """Return the condition of time and class, each [B, D]: their sum, and two tokens."""
    # adaLN reads the sum, in-context and cross-attention read the two
    return Condition(time + label, torch.stack([time, label], dim=1))


class TimestepEmbedder(nn.Module):
    """Times [B] to vectors [B, D]: cosines and sines of 128 frequencies, two linear layers."""

    time_scale = 1.0  # a factor on the times; 1/1000 in networks that were trained on 0 … 1
    endpoint = False  # whether the lowest frequency is 1/10000 itself, see `frequencies`

    def __init__(self, hidden_size: int, frequency_size: int = 256):
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.waves(t))

    def waves(self, t: Tensor) -> Tensor:
        """Return the waves of times [B, 256] in the type of the weights."""
        # those are at least float32, the weights may be bfloat16
        return self.exact_waves(t).to(self.mlp[0].weight.dtype)  # type: ignore[arg-type]

    def exact_waves(self, t: Tensor) -> Tensor:
        """Return the cosines and sines of times: [B, 256], at least float32."""
        return sinusoids(self.time_scale * t, self.frequency_size, self.endpoint)


class IntervalEmbedder(TimestepEmbedder):
    """Times, and lengths of the step that begins there, to the sum of two embeddings (2505.13447).

    The length's last layer starts at zero: a fresh network, or one with the weights of a flow, does
    not hear the length.

    Waves are means over times nearby. The fast ones, of periods from 2 pi in 0 … 1000, hardly
    matter to a flow; but they would make up most of the derivative by time, from which MeanFlow
    learns, and training diverges. Means over 250 times leave slopes up to 2.4 in 0 … 1, near the 1
    of waves of which the fastest has a period of 2 pi in 0 … 1 (SiT 2401.08740); over 25, up to 24.

    Attributes:
        smoothing: deviation of those times, of 0 … 1000.
    """

    smoothing = SMOOTHING

    def __init__(self, hidden_size: int, frequency_size: int = 256):
        super().__init__(hidden_size, frequency_size)
        first, last = nn.Linear(frequency_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(first.weight, std=0.02)
        for zero in (first.bias, last.weight, last.bias):
            nn.init.zeros_(zero)
        self.length_mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, t: Tensor) -> Tensor:
        """Map times and lengths [B, 2], or times [B] of steps without length, to [B, D]."""
        times, lengths = (t, torch.zeros_like(t)) if t.ndim == 1 else t.unbind(dim=1)
        return self.mlp(self.waves(times)) + self.length_mlp(self.waves(lengths))

    def exact_waves(self, t: Tensor) -> Tensor:
        """Return the means of cosines and sines over normal times around t: [B, 256]."""
        waves = super().exact_waves(t)
        # E cos(f (t + s n)) = exp(-(f s)^2 / 2) cos(f t) for a standard normal n
        along = frequencies(self.frequency_size, t, self.endpoint)
        angles = self.time_scale * self.smoothing * along
        return waves * torch.exp(-angles.square() / 2).repeat(2)


def with_lengths(embedder: TimestepEmbedder) -> IntervalEmbedder:
    """Return an embedder of times and lengths that has the times of this one."""
    hidden_size = embedder.mlp[2].out_features
    embedding = IntervalEmbedder(hidden_size, embedder.frequency_size)  # type: ignore[arg-type]
    embedding.mlp = embedder.mlp
    return embedding


class LabelEmbedder(nn.Module):
    """Class ids [B] to vectors [B, D]; id `num_classes` is the null class of guidance."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def text_mask(text: Tensor) -> Tensor:
    """Return which tokens of text [B, S, E] count, bool [B, S]: those of zeros are padding."""
    # the first always counts: attention to no token at all is undefined
    first = torch.arange(text.shape[1], device=text.device) == 0
    return text.any(dim=-1) | first


def sinusoids(position: Tensor, size: int, endpoint: bool = False) -> Tensor:
    """Return cosines and sines at frequencies from 1 to 1/10000: [N] -> [N, size]."""
    along = frequencies(size, position, endpoint)
    angles = position[:, None].to(along.dtype) * along
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def frequencies(size: int, like: Tensor, endpoint: bool = False) -> Tensor:
    """Return size / 2 frequencies from 1 to 1/10000, at least float32, where `like` is.

    Args:
        endpoint: whether 1/10000 is among them: 10000^(-i / 127), as diffusers' DiT has them, not
            10000^(-i / 128), as the release does.
    """
    half = size // 2
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents = torch.arange(half, dtype=dtype, device=like.device)
    return torch.exp(-math.log(10000) * exponents / (half - endpoint))


def position_embedding(
    hidden_size: int, grid: tuple[int, int], trained: tuple[int, int] | None = None
) -> Tensor:
    """Return fixed 2-D sin-cos positions [h * w, D]: half the features for columns, half for rows.

    Args:
        grid: (h, w), tokens along each axis.
        trained: the grid of training, stretched over this one so that both have the same edges.
    """
    trained = trained or grid
    rows = _axis(grid[0], trained[0], hidden_size // 2)[:, None].expand(-1, grid[1], -1)
    columns = _axis(grid[1], trained[1], hidden_size // 2).expand(grid[0], -1, -1)
    return rearrange(torch.cat([columns, rows], dim=-1), "h w d -> (h w) d").float()


def axial_rotation(
    head_size: int, grid: tuple[int, int], trained: tuple[int, int] | None = None
) -> Tensor:
    """Return cosines and sines of 2-D rotary positions (2104.09864; axial): [2, h * w, d / 2].

    The first half of a head's d features turns with the row, the second with the column; each half
    has d / 4 frequencies 10000^(-k / (d / 4)), one a pair of features.

    Args:
        grid, trained: as of `position_embedding`.
    """
    trained = trained or grid
    features = head_size // 2  # cosines and sines of d / 4 pairs
    rows = sinusoids(_centres(grid[0], trained[0]), features).view(-1, 1, 2, features // 2)
    columns = sinusoids(_centres(grid[1], trained[1]), features).view(1, -1, 2, features // 2)
    turns = torch.cat([rows.expand(-1, grid[1], -1, -1), columns.expand(grid[0], -1, -1, -1)], -1)
    return rearrange(turns, "h w two d -> two (h w) d").float()


def _axis(size: int, trained: int, features: int) -> Tensor:
    """Embed the centres of `size` tokens: [size, features]."""
    # the release has sines first for positions, cosines first for times
    return sinusoids(_centres(size, trained), features).roll(features // 2, dims=-1)


def _centres(size: int, trained: int) -> Tensor:
    """Return the centres of `size` tokens in units of the `trained` ones, float64 [size]."""
    return (torch.arange(size, dtype=torch.float64) + 0.5) * (trained / size) - 0.5
