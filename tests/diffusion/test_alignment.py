"""The loss of alignment against its formula, and the cleaner times of a teacher."""

import numpy as np
import pytest
import torch

from dit.diffusion.alignment import alignment_loss, cleaner_times, draws_of, spatial_norm
from dit.diffusion.process import DDPM, Flow

B, N, E = 3, 16, 5


def draws(seed):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(B, N, E))


def written_out(projected, features):
    """2512.10794 and 2410.06940, image by image and token by token."""
    losses = []
    for p, z in zip(projected, features, strict=True):
        mean, deviation = z.sum(0) / N, np.sqrt(((z - z.sum(0) / N) ** 2).sum(0) / N)
        cosines = []
        for token, feature in zip(p, z, strict=True):
            goal = (feature - 0.8 * mean) / (deviation + 1e-6)
            cosines.append((token @ goal) / np.sqrt((token @ token) * (goal @ goal)))
        losses.append(1 - sum(cosines) / N)
    return torch.tensor(losses)


def test_formula():
    projected, features = draws(0), draws(1)
    found = alignment_loss(torch.from_numpy(projected), torch.from_numpy(features))
    torch.testing.assert_close(found, written_out(projected, features), rtol=1e-12, atol=1e-12)


def test_gradient_by_finite_differences():
    projected = torch.from_numpy(draws(2)).requires_grad_()
    features = torch.from_numpy(draws(3))
    assert torch.autograd.gradcheck(lambda p: alignment_loss(p, features), projected)


def test_limits():
    features = torch.from_numpy(draws(4))
    aligned = 7 * spatial_norm(features)
    assert alignment_loss(aligned, features).abs().max() < 1e-12
    assert (alignment_loss(-aligned, features) - 2).abs().max() < 1e-12
    # features that are the same everywhere have no deviation
    assert alignment_loss(aligned, torch.ones_like(features)).isfinite().all()


@pytest.mark.parametrize(("process", "least"), [(Flow(), 0.0), (DDPM(), 1.0)])
def test_cleaner_times(process, least):
    t = process.sample_time(10_000, torch.Generator().manual_seed(0))
    uniforms = torch.rand(10_000, generator=torch.Generator().manual_seed(1))
    earlier = cleaner_times(process, t, uniforms)
    assert earlier.dtype == t.dtype
    assert earlier.min() >= least
    gap = (t - earlier) / process.end
    assert gap.min() >= 0
    assert gap.max() <= 0.2 + 1e-3
    far = t > 0.3 * process.end
    # the mean of 7,000 numbers uniform in [0, 0.2]: six standard errors, and half a step of DDPM
    assert abs(gap[far].mean() - 0.1) < 6 * 0.2 / 12**0.5 / 5000**0.5 + 1e-3
    if process.end == 1000:
        assert (earlier == earlier.round()).all()


def test_only_a_cleaner_time_is_drawn():
    assert [draws_of(align) for align in (None, "self", "timm/vit")] == [0, 1, 0]
