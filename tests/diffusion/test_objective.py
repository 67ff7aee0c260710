"""Training losses against direct computations."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dit.diffusion.likelihood import discretized_log_likelihood, normal_kl
from dit.diffusion.objective import diffusion_loss, drop_labels
from dit.diffusion.process import DDPM, Denoiser, Flow, add_noise, posterior
from dit.diffusion.weighting import min_snr

SHAPE = (6, 2, 4, 4)


def normal(seed, *shape):
    return torch.randn(
        *(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def batch(process, t):
    """Data, labels, times and noise."""
    return (
        normal(1) / 2,
        torch.arange(6) % 3,
        torch.as_tensor(t, dtype=torch.float64) * process.end / 1000,
        normal(2),
    )


TIMES = [2, 17, 200, 512, 800, 1000]


class Toy(torch.nn.Module):
    """A smooth network with a parameter for the mean and one for the variance."""

    def __init__(self, learn_sigma):
        super().__init__()
        self.mean, self.var = (
            torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.7, 0.4)
        )
        self.learn_sigma = learn_sigma

    def forward(self, x, t, y):
        out = torch.sin(self.mean * x + y.view(-1, 1, 1, 1))
        return torch.cat([out, torch.cos(self.var * x)], dim=1) if self.learn_sigma else out


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", [DDPM(), Flow()], ids=["linear", "flow"])
def test_a_perfect_network_has_no_loss(process, objective):
    x0, y, t, eps = batch(process, TIMES)
    _, _, d_alpha, d_sigma = (c.view(-1, 1, 1, 1) for c in process.coefficients(t))
    truth = {"eps": eps, "x0": x0, "v": d_alpha * x0 + d_sigma * eps}[objective]
    loss = diffusion_loss(Denoiser(lambda *_: truth, process, objective), x0, y, t, eps)
    assert loss.total == 0
    off = diffusion_loss(Denoiser(lambda *_: truth + 0.5, process, objective), x0, y, t, eps)
    assert off.total.item() == pytest.approx(0.25)
    assert off.terms["mse"].tolist() == pytest.approx([0.25] * 6)


def test_the_network_sees_what_it_should():
    x0, y, t, eps = batch(DDPM(), TIMES)
    seen = {}

    def network(x_t, time, label):
        seen.update(x=x_t, t=time, y=label)
        return x_t

    diffusion_loss(Denoiser(network, DDPM(), "eps"), x0, y, t, eps)
    alpha, sigma, *_ = DDPM().coefficients(t)
    assert (
        seen["x"] - alpha.view(-1, 1, 1, 1) * x0 - sigma.view(-1, 1, 1, 1) * eps
    ).abs().max() < 1e-15
    assert seen["t"].tolist() == [time - 1 for time in TIMES]
    assert torch.equal(seen["y"], y)


def two_gaussians(x0, x_t, t, said_x0, fraction):
    """The true posterior and the model's step, as distributions (2102.09672, equations 10 and 15)."""
    true = posterior(DDPM(), x_t, x0, t, t - 1)
    model = posterior(DDPM(), x_t, said_x0, t, t - 1)
    # at t = 1 the true variance is 0; the release puts that of t = 2 in its place
    not_first = torch.where(t == 1, 2.0, t)
    smallest = posterior(DDPM(), x_t, x0, not_first, not_first - 1).var_min
    between = true.var_max**fraction * smallest ** (1 - fraction)
    return Normal(true.mean, smallest.sqrt()), Normal(model.mean, between.sqrt())


@pytest.mark.parametrize("objective", ["eps", "v"])
def test_variational_bound_is_the_kl_divergence(objective):
    x0, y, t, eps = batch(DDPM(), TIMES)
    denoise = Denoiser(Toy(True), DDPM(), objective, learn_sigma=True)
    x_t = add_noise(DDPM(), x0, eps, t)
    said = denoise(x_t, t, y)
    true, model = two_gaussians(x0, x_t, t, said.x0, said.var_fraction)
    bits = kl_divergence(true, model).flatten(1).mean(1) / math.log(2)
    loss = diffusion_loss(denoise, x0, y, t, eps)
    assert loss.terms["vb"].tolist() == pytest.approx(bits.tolist(), rel=1e-8)
    assert loss.total.item() == pytest.approx((loss.terms["mse"] + loss.terms["vb"]).mean().item())


def test_last_step_is_a_likelihood_of_bins():
    x0, y, t, eps = batch(DDPM(), [1] * 6)
    x0 = (x0 / 3).clamp(-0.95, 0.95)
    denoise = Denoiser(Toy(True), DDPM(), "eps", learn_sigma=True)
    x_t = add_noise(DDPM(), x0, eps, t)
    said = denoise(x_t, t, y)
    _, model = two_gaussians(x0, x_t, t, said.x0, said.var_fraction)
    mass = model.cdf(x0 + 1 / 255) - model.cdf(x0 - 1 / 255)
    bits = -mass.clamp(min=1e-12).log2().flatten(1).mean(1)
    assert diffusion_loss(denoise, x0, y, t, eps).terms["vb"].tolist() == pytest.approx(
        bits.tolist(), rel=1e-8
    )
    assert (mass > 1e-3).double().mean() > 0.5  # the floor does not decide


def test_bins_cover_the_line():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mass = discretized_log_likelihood(levels, torch.tensor(0.9), torch.tensor(-1.0)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    assert mass[-1] > 20 * mass[-2]  # the outermost bin reaches to infinity


def test_kl_between_normals():
    m1, m2, s1, s2 = (normal(seed, 50) for seed in range(4))
    direct = kl_divergence(Normal(m1, (s1 / 2).exp()), Normal(m2, (s2 / 2).exp()))
    assert (normal_kl(m1, s1, m2, s2) - direct).abs().max() < 1e-12


def test_bound_trains_the_variance_alone():
    """2102.09672, section 3.1: no gradient of the bound reaches the mean."""
    network = Toy(True)
    args = batch(DDPM(), [1, *TIMES[1:]])
    denoise = Denoiser(network, DDPM(), "eps", learn_sigma=True)
    total = diffusion_loss(denoise, *args).total
    with_bound = torch.autograd.grad(total, [network.mean, network.var], retain_graph=True)
    without = torch.autograd.grad(
        diffusion_loss(Denoiser(lambda *a: network(*a)[:, :2], DDPM(), "eps"), *args).total,
        [network.mean],
    )
    assert with_bound[0].item() == pytest.approx(without[0].item(), rel=1e-12)
    assert with_bound[1].abs() > 1e-6


def test_bound_is_finite_in_float32_at_every_time():
    t = torch.arange(1, 1001).double()
    x0, eps = (normal(seed, 1000, 1, 2, 2).float() for seed in (1, 2))
    var = torch.nn.Parameter(torch.zeros(1))
    denoise = Denoiser(
        lambda x, t, y: torch.cat([x, x * 0 + var], 1), DDPM(), "eps", learn_sigma=True
    )
    loss = diffusion_loss(denoise, 3 * x0, torch.zeros(1000).long(), t, eps)
    loss.total.backward()
    assert loss.terms["vb"].isfinite().all()
    assert var.grad.isfinite().all()
    assert not loss.terms["vb"].requires_grad


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_of_the_paper(gamma):
    """2303.09556, section 3.4: min(SNR, g), min(SNR, g) / SNR, min(SNR, g) / (SNR + 1)."""
    t = torch.arange(1, 1001).double()
    snr = DDPM().alpha[1:] ** 2 / DDPM().sigma[1:] ** 2
    assert snr.min() < 1 < 5 < snr.max()
    least = snr.clamp(max=gamma)
    for objective, weight in {"x0": least, "eps": least / snr, "v": least / (snr + 1)}.items():
        assert min_snr(DDPM(), objective, t, gamma).tolist() == pytest.approx(
            weight.tolist(), rel=1e-9
        )


@pytest.mark.parametrize("process", [DDPM(), Flow()], ids=["linear", "flow"])
def test_min_snr_makes_all_objectives_one_loss(process):
    """One guess of x0, told as eps, x0 or v, costs the same."""
    x0, y, t, eps = batch(process, [2, 17, 200, 512, 800, 990])
    x_t, guess = add_noise(process, x0, eps, t), x0 + normal(3)
    alpha, sigma, d_alpha, d_sigma = (c.view(-1, 1, 1, 1) for c in process.coefficients(t))
    noise = (x_t - alpha * guess) / sigma
    told = {"eps": noise, "x0": guess, "v": d_alpha * guess + d_sigma * noise}
    losses = [
        diffusion_loss(
            Denoiser(lambda *_, o=out: o, process, kind), x0, y, t, eps, min_snr_gamma=5.0
        )
        for kind, out in told.items()
    ]
    snr = (process.coefficients(t).alpha / process.coefficients(t).sigma) ** 2
    expected = (snr.clamp(max=5) * (guess - x0).square().flatten(1).mean(1)).mean()
    assert [loss.total.item() for loss in losses] == pytest.approx([expected.item()] * 3, rel=1e-9)


def test_dropped_labels_become_the_null_class():
    y = torch.tensor([0, 1, 2, 9])
    assert drop_labels(y, torch.tensor([True, False, True, False]), 10).tolist() == [10, 1, 10, 9]
    assert y.tolist() == [0, 1, 2, 9]
