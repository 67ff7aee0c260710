"""Training losses against direct computations."""

import math

import pytest
import torch
from helpers.diffusion import normal, time
from torch.distributions import Normal, kl_divergence

from dit.config import TrainConfig
from dit.diffusion.likelihood import discretized_log_likelihood, normal_kl
from dit.diffusion.objective import diffusion_loss, drop_labels
from dit.diffusion.process import DDPM, Denoiser, Flow, add_noise, posterior
from dit.diffusion.weighting import min_snr
from dit.training.build_loss import build_loss

SHAPE = (6, 2, 4, 4)
TIMES = [2, 17, 200, 512, 800, 1000]

both_processes = pytest.mark.parametrize("process", [DDPM(), Flow()], ids=["linear", "flow"])


def batch(process, t):
    """Data, labels, times and noise."""
    t = time(t) * process.end / 1000
    return normal(*SHAPE, seed=1) / 2, torch.arange(6) % 3, t, normal(*SHAPE, seed=2)


def per_image(coefficients):
    return [c.view(-1, 1, 1, 1) for c in coefficients]


class TwoParameters(torch.nn.Module):
    """A smooth network with a parameter for the mean and one for the variance."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(time(0.7))
        self.var = torch.nn.Parameter(time(0.4))

    def forward(self, x, t, y):
        out = torch.sin(self.mean * x + y.view(-1, 1, 1, 1))
        return torch.cat([out, torch.cos(self.var * x)], dim=1)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@both_processes
def test_a_perfect_network_has_no_loss(process, objective):
    x0, y, t, eps = batch(process, TIMES)
    _, _, d_alpha, d_sigma = per_image(process.coefficients(t))
    truth = {"eps": eps, "x0": x0, "v": d_alpha * x0 + d_sigma * eps}[objective]
    loss = diffusion_loss(Denoiser(lambda *_: truth, process, objective), x0, y, t, eps)
    assert loss.mean == 0
    off = diffusion_loss(Denoiser(lambda *_: truth + 0.5, process, objective), x0, y, t, eps)
    assert off.mean.item() == pytest.approx(0.25)
    assert off.terms["mse"].tolist() == pytest.approx([0.25] * 6)


def test_inputs_of_the_network():
    x0, y, t, eps = batch(DDPM(), TIMES)
    calls = []
    denoise = Denoiser(lambda *args: calls.append(args) or args[0], DDPM(), "eps")
    diffusion_loss(denoise, x0, y, t, eps)
    alpha, sigma, *_ = per_image(DDPM().coefficients(t))
    x_t, network_time, label = calls[0]
    assert (x_t - alpha * x0 - sigma * eps).abs().max() < 1e-15
    assert network_time.tolist() == [t - 1 for t in TIMES]
    assert torch.equal(label, y)


def two_gaussians(denoise, x0, y, t, eps):
    """The posterior and the model's step (2102.09672, equations 10 and 15)."""
    x_t = add_noise(DDPM(), x0, eps, t)
    prediction = denoise(x_t, t, y)
    fraction = prediction.var_fraction
    true = posterior(DDPM(), x_t, x0, t, t - 1)
    model = posterior(DDPM(), x_t, prediction.x0, t, t - 1)
    # at t = 1 the true variance is 0; the release takes that of t = 2
    not_first = torch.where(t == 1, 2.0, t)
    smallest = posterior(DDPM(), x_t, x0, not_first, not_first - 1).var_min
    between = true.var_max**fraction * smallest ** (1 - fraction)
    return Normal(true.mean, smallest.sqrt()), Normal(model.mean, between.sqrt())


@pytest.mark.parametrize("objective", ["eps", "v"])
def test_variational_bound_is_the_kl_divergence(objective):
    args = batch(DDPM(), TIMES)
    denoise = Denoiser(TwoParameters(), DDPM(), objective, learn_sigma=True)
    bits = kl_divergence(*two_gaussians(denoise, *args)).flatten(1).mean(1) / math.log(2)
    loss = diffusion_loss(denoise, *args)
    assert loss.terms["vb"].tolist() == pytest.approx(bits.tolist(), rel=1e-8)
    assert loss.mean.item() == pytest.approx((loss.terms["mse"] + loss.terms["vb"]).mean().item())


def test_last_step_is_a_likelihood_of_bins():
    x0, y, t, eps = batch(DDPM(), [1] * 6)
    x0 = (x0 / 3).clamp(-0.95, 0.95)
    denoise = Denoiser(TwoParameters(), DDPM(), "eps", learn_sigma=True)
    _, model = two_gaussians(denoise, x0, y, t, eps)
    mass = model.cdf(x0 + 1 / 255) - model.cdf(x0 - 1 / 255)
    bits = -mass.clamp(min=1e-12).log2().flatten(1).mean(1)
    vb = diffusion_loss(denoise, x0, y, t, eps).terms["vb"]
    assert vb.tolist() == pytest.approx(bits.tolist(), rel=1e-8)
    assert (mass > 1e-3).double().mean() > 0.5  # the floor does not decide


def test_bins_cover_the_line():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mass = discretized_log_likelihood(levels, torch.tensor(0.9), torch.tensor(-1.0)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    assert mass[-1] > 20 * mass[-2]  # the outermost bin reaches to infinity


def test_kl_between_normals():
    m1, m2, s1, s2 = (normal(50, seed=seed) for seed in range(4))
    direct = kl_divergence(Normal(m1, (s1 / 2).exp()), Normal(m2, (s2 / 2).exp()))
    assert (normal_kl(m1, s1, m2, s2) - direct).abs().max() < 1e-12


def test_bound_trains_the_variance_alone():
    """2102.09672, section 3.1: no gradient of the bound reaches the mean."""
    network = TwoParameters()
    args = batch(DDPM(), [1, *TIMES[1:]])
    denoise = Denoiser(network, DDPM(), "eps", learn_sigma=True)
    total = diffusion_loss(denoise, *args).mean
    of_mean, of_var = torch.autograd.grad(total, [network.mean, network.var])
    mean_alone = Denoiser(lambda *a: network(*a)[:, :2], DDPM(), "eps")
    (expected,) = torch.autograd.grad(diffusion_loss(mean_alone, *args).mean, [network.mean])
    assert of_mean.item() == pytest.approx(expected.item(), rel=1e-12)
    assert of_var.abs() > 1e-6


def test_bound_is_finite_in_float32_at_every_time():
    t = torch.arange(1, 1001).double()
    x0, eps = (normal(1000, 1, 2, 2, seed=seed).float() for seed in (1, 2))
    var = torch.nn.Parameter(torch.zeros(1))
    denoise = Denoiser(
        lambda x, t, y: torch.cat([x, x * 0 + var], 1), DDPM(), "eps", learn_sigma=True
    )
    loss = diffusion_loss(denoise, 3 * x0, torch.zeros(1000).long(), t, eps)
    loss.mean.backward()
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
        found = min_snr(DDPM(), objective, t, gamma)
        assert found.tolist() == pytest.approx(weight.tolist(), rel=1e-9)


@both_processes
def test_min_snr_makes_all_objectives_one_loss(process):
    """One guess of x0, given as eps, x0 or v, costs the same."""
    x0, y, t, eps = batch(process, [2, 17, 200, 512, 800, 990])
    guess = x0 + normal(*SHAPE, seed=3)
    alpha, sigma, d_alpha, d_sigma = per_image(process.coefficients(t))
    noise = (add_noise(process, x0, eps, t) - alpha * guess) / sigma
    snr = (process.coefficients(t).alpha / process.coefficients(t).sigma) ** 2
    expected = (snr.clamp(max=5) * (guess - x0).square().flatten(1).mean(1)).mean()
    outs = {"eps": noise, "x0": guess, "v": d_alpha * guess + d_sigma * noise}
    for objective, out in outs.items():
        denoise = Denoiser(lambda *_, out=out: out, process, objective)
        loss = diffusion_loss(denoise, x0, y, t, eps, min_snr_gamma=5.0)
        assert loss.mean.item() == pytest.approx(expected.item(), rel=1e-9)


def test_dropped_labels_become_the_null_class():
    y = torch.tensor([0, 1, 2, 9])
    assert drop_labels(y, torch.tensor([True, False, True, False]), 10).tolist() == [10, 1, 10, 9]
    assert y.tolist() == [0, 1, 2, 9]


# -- velocities ------------------------------------------------------------------------------------


def test_the_velocity_loss_of_an_x0_network_is_that_of_its_velocity():
    """2511.13720, equation 6, with our t: both velocities are (x_t - x) / max(t, 0.05)."""
    process = Flow()
    x0, y, _, eps = batch(process, TIMES)
    t = torch.tensor([0.001, 0.03, 0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    x_t = add_noise(process, x0, eps, t)
    predicted = x0 + 0.1 * eps.sin()
    denoise = Denoiser(lambda *_: predicted, process, "x0")
    loss = diffusion_loss(denoise, x0, y, t, eps, velocity=True)
    least = t.clamp(min=0.05).view(-1, 1, 1, 1)
    expected = ((x_t - predicted) / least - (x_t - x0) / least).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.each, expected, rtol=1e-9, atol=0)
    # the log has the error of the data
    expected = (predicted - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.terms["mse"], expected, rtol=1e-9, atol=0)


def test_the_velocity_loss_of_a_velocity_network_is_the_plain_one():
    process = Flow()
    denoise = Denoiser(lambda x, t, y: x.sin(), process, "v")
    losses = [
        diffusion_loss(denoise, *batch(process, TIMES), velocity=velocity).each
        for velocity in (False, True)
    ]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("objective", ["v", "x0"])
def test_the_cosine_of_velocities_is_over_channels(objective):
    """2410.10356, section 4: 0 for a velocity of any length, 1 for an orthogonal one, else 2."""
    process = Flow()
    x0, y, t, eps = batch(process, TIMES)
    x_t, v = add_noise(process, x0, eps, t), eps - x0
    orthogonal = torch.stack([-v[:, 1], v[:, 0]], dim=1)  # two channels
    for predicted, expected in ((3 * v, 0), (orthogonal, 1), (-v, 2)):
        out = predicted if objective == "v" else x_t - t.view(-1, 1, 1, 1) * predicted
        denoise = Denoiser(lambda *_, out=out: out, process, objective)
        loss = diffusion_loss(denoise, x0, y, t, eps, cosine=0.5)
        torch.testing.assert_close(
            loss.terms["cosine"], torch.full((6,), float(expected)).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(loss.each, loss.terms["mse"] + 0.5 * loss.terms["cosine"])


def test_the_cosine_of_a_fresh_network_has_a_gradient_of_usual_size():
    """A cosine has none at 0, which a fresh network predicts; 1e8 would blind the spike guard."""
    process, out = Flow(), torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    loss = diffusion_loss(
        Denoiser(lambda *_: out, process, "v"), *batch(process, TIMES), cosine=1.0
    )
    (gradient,) = torch.autograd.grad(loss.mean, out)
    assert 0 < gradient.norm() < 100


def test_routing_hands_the_kept_tokens_by_position():
    """As the pass that warms up DDP, so that one compiled network serves both."""
    calls = []

    def network(x, *others):
        calls.append(others)
        return x

    process, config = Flow(), TrainConfig(route=0.5)
    x0, y, t, eps = batch(process, TIMES)
    loss, _ = build_loss(config, network, process)
    loss(x0, y, t, eps, torch.tensor([[0.9, 0.1, 0.8, 0.2]]).expand(6, -1))
    ((_, labels, keep),) = calls
    assert torch.equal(labels, y)
    assert keep.tolist() == [[1, 3]] * 6
