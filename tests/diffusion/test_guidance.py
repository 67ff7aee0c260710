"""Guidance: classifier-free, by a weaker denoiser, by a classifier."""

import pytest
import torch

from dit.diffusion.classifier import TERMS, NoisyClassifier, classifier_loss
from dit.diffusion.guidance import cfg, classifier_guidance, ignoring_labels, with_objective
from dit.diffusion.process import DDPM, Denoiser, Flow, target
from dit.diffusion.samplers import ddim, ddpm, dpmpp_2m, heun

NULL = 9
PROCESSES = {"linear": DDPM(), "flow": Flow()}
X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([1, 2, 3])


class Toy(torch.nn.Module):
    """Nonlinear in the image and the label; remembers the labels of each call."""

    def __init__(self, learn_sigma=False):
        super().__init__()
        self.seen, self.learn_sigma = [], learn_sigma

    def forward(self, x, t, y):
        self.seen.append(y.tolist())
        at = (t / 500 + y).view(-1, 1, 1, 1)
        out = torch.sin(x + at)
        return torch.cat([out, torch.cos(3 * x - at)], dim=1) if self.learn_sigma else out


def toy(process="linear", objective="v", learn_sigma=False):
    return Denoiser(Toy(learn_sigma), PROCESSES[process], objective, learn_sigma)


def at(process, part=0.5):
    return torch.tensor(process.end * part, dtype=torch.float64)


def guided(denoise, scale, part=0.5, **options):
    process = denoise.process
    return cfg(denoise, process, scale, NULL, **options)(X, at(process, part), Y)


def difference(one, other):
    return max((a - b).abs().max() for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", PROCESSES)
def test_formula_and_linearity(process, objective):
    """2207.12598, equation 6, for every quantity: unconditional at 0, conditional at 1, straight on beyond."""
    denoise = toy(process, objective)
    conditional = denoise(X, at(denoise.process), Y)
    unconditional = denoise(X, at(denoise.process), torch.full_like(Y, NULL))
    assert difference(guided(denoise, 1.0), conditional) == 0
    assert difference(guided(denoise, 0.0), unconditional) < 1e-12
    for scale in (0.5, 1.5, 4.0):
        expected = [
            u + scale * (c - u) for c, u in zip(conditional[:3], unconditional[:3], strict=True)
        ]
        assert difference(guided(denoise, scale), expected) < 1e-12


@pytest.mark.parametrize("process", PROCESSES)
def test_guided_prediction_is_consistent(process):
    """Guided data and noise still make x_t, so that samplers may use either."""
    denoise = toy(process)
    said = guided(denoise, 4.0)
    alpha, sigma, *_ = denoise.process.coefficients(at(denoise.process))
    assert (alpha * said.x0 + sigma * said.eps - X).abs().max() < 1e-12


def test_both_halves_in_one_call():
    denoise = toy()
    guided(denoise, 4.0)
    assert denoise.network.seen == [[1, 2, 3, NULL, NULL, NULL]]


def test_scale_1_asks_for_no_unconditional_half():
    denoise = toy()
    guided(denoise, 1.0)
    assert denoise.network.seen == [[1, 2, 3]]


def test_three_channels_are_the_quirk_of_the_release():
    denoise = toy(learn_sigma=True)
    plain, full, three = (
        guided(denoise, *args, **kw)
        for args, kw in (((1.0,), {}), ((4.0,), {}), ((4.0,), dict(channels=3)))
    )
    for c, f, g in zip(plain[:3], full[:3], three[:3], strict=True):
        assert torch.equal(g[:, :3], f[:, :3])
        assert torch.equal(g[:, 3:], c[:, 3:])
        assert (g[:, :3] - c[:, :3]).abs().min() > 1e-6
    assert difference(guided(denoise, 4.0, channels=4), full) == 0


@pytest.mark.parametrize("options", [{}, dict(channels=3)])
def test_variance_stays_conditional(options):
    denoise = toy(learn_sigma=True)
    conditional = denoise(X, at(denoise.process), Y)
    assert torch.equal(guided(denoise, 4.0, **options).var_fraction, conditional.var_fraction)


@pytest.mark.parametrize("process", PROCESSES)
def test_interval(process):
    denoise = toy(process)
    interval = (0.25, 0.75)
    for part, inside in (
        (0.2, False),
        (0.25, True),
        (0.5, True),
        (0.75, True),
        (0.8, False),
        (1.0, False),
    ):
        denoise.network.seen.clear()
        said = guided(denoise, 4.0, part, interval=interval)
        assert [len(y) for y in denoise.network.seen] == [6 if inside else 3]
        if not inside:
            assert difference(said, denoise(X, at(denoise.process, part), Y)) == 0


def test_sampling_calls_the_network_once_a_step():
    denoise = toy(learn_sigma=True)
    times = denoise.process.times(10)  # 1000, 889, …, 1
    around = cfg(denoise, denoise.process, 2.0, NULL, interval=(0.0, 0.5))
    ddpm(around, denoise.process, X, Y, times, lambda: torch.zeros_like(X), variance="learned")
    assert [len(y) for y in denoise.network.seen] == [3] * 5 + [6] * 5
    denoise.network.seen.clear()
    heun(cfg(denoise, denoise.process, 2.0, NULL), denoise.process, X, Y, times, lambda: X)
    assert [len(y) for y in denoise.network.seen] == [6] * 19


def test_what_a_label_says_does_not_matter_to_a_deaf_network():
    """Guidance of a network that ignores labels changes nothing, at any scale."""
    process = Flow()
    denoise = Denoiser(lambda x, t, y: torch.sin(x), process, "v")
    plain = heun(denoise, process, X, Y, process.times(5), lambda: X)
    assert (
        heun(cfg(denoise, process, 7.5, NULL), process, X, Y, process.times(5), lambda: X) - plain
    ).abs().max() < 1e-12


# -- autoguidance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_guide_takes_the_place_of_no_class(process):
    """2406.02507: guided by its own deaf self, a denoiser is guided as by the null class; else along the line."""
    denoise = toy(process)
    itself = ignoring_labels(denoise, NULL)
    assert difference(guided(denoise, 3.0, guide=itself), guided(denoise, 3.0)) == 0
    weak = toy(process, learn_sigma=True)
    w, s = weak(X, at(denoise.process), Y), denoise(X, at(denoise.process), Y)
    said = guided(denoise, 3.0, guide=weak)
    assert difference(said, [b + 3.0 * (a - b) for a, b in zip(s[:3], w[:3], strict=True)]) < 1e-12
    assert said.var_fraction is None  # as the strong one, not the weak
    assert weak.network.seen[-1] == [1, 2, 3]


def test_guide_of_another_objective_is_restated():
    denoise, weak = toy(objective="v"), toy(objective="eps")
    process = denoise.process
    said = guided(denoise, 3.0, guide=with_objective(weak, process, "v"))
    time = at(process)
    assert (said.out - target(process, "v", said.x0, said.eps, time)).abs().max() < 1e-12
    outside = guided(denoise, 3.0, part=0.9, guide=weak, interval=(0.0, 0.5))
    assert difference(outside, denoise(X, at(process, 0.9), Y)) == 0


# -- a classifier, on a mixture of Gaussians whose every term is known ---------------------------------------------

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
SPREAD, PRIOR = 0.5, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
EVERY = len(MEANS)
POINTS = 2 * torch.randn(
    6, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
CLASS = torch.tensor([0, 1, 2, 0, 1, 2])


def time_of(process, network_time):
    return (network_time[0] + 1 if isinstance(process, DDPM) else network_time[0] / 1000).cpu()


def log_joint(process, x, t):
    """log p(x_t, k) [B, 3] up to a constant."""
    alpha, sigma, *_ = process.coefficients(t)
    var = alpha**2 * SPREAD**2 + sigma**2
    return PRIOR.log() - (x[:, None, :, 0, 0] - alpha * MEANS).square().sum(-1) / (2 * var)


def mixture(process, objective):
    """The denoiser of the mixture, conditional on a class or, for the null class EVERY, on none."""

    def network(x, time, y):
        t = time_of(process, time)
        alpha, sigma, *_ = process.coefficients(t)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        each = MEANS + gain * (x[:, None, :, 0, 0] - alpha * MEANS)  # [B, 3, 2]
        known = torch.nn.functional.one_hot(y.clamp(max=EVERY - 1), EVERY).double()
        weight = torch.where(y[:, None] == EVERY, log_joint(process, x, t).softmax(1), known)
        x0 = (weight[..., None] * each).sum(1)[..., None, None]
        return target(process, objective, x0, (x - alpha * x0) / sigma, t)

    return Denoiser(network, process, objective)


def bayes(process):
    """The classifier of the mixture."""
    return NoisyClassifier(lambda x, time: log_joint(process, x, time_of(process, time)), process)


def by_classifier(process, objective, scale, inner=None):
    plain = inner or ignoring_labels(mixture(process, objective), EVERY)
    return classifier_guidance(plain, process, objective, bayes(process).gradient, scale)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", [DDPM(), DDPM("cosine"), Flow()])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.95])
def test_bayes(process, objective, part):
    """p(x_t | y) is p(x_t) p(y | x_t): at scale 1 the unconditional model becomes the conditional one, exactly."""
    conditional = mixture(process, objective)(POINTS, at(process, part), CLASS)
    said = by_classifier(process, objective, 1.0)(POINTS, at(process, part), CLASS)
    assert difference(said, conditional) < 1e-9
    plain = ignoring_labels(mixture(process, objective), EVERY)(POINTS, at(process, part), CLASS)
    assert difference(said, plain) > 1e-3


@pytest.mark.parametrize("process", [DDPM(), Flow()])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_classifier_free_guidance_is_guidance_by_the_implicit_classifier(process, scale):
    """2207.12598, section 3.2: grad log p(y | x_t) = -(conditional eps - unconditional eps) / sigma."""
    denoise, t = mixture(process, "v"), at(process)
    sigma = process.coefficients(t).sigma

    def implicit(x, t, y):
        return -(denoise(x, t, y).eps - denoise(x, t, torch.full_like(y, EVERY)).eps) / sigma

    around = classifier_guidance(ignoring_labels(denoise, EVERY), process, "v", implicit, scale)
    free = cfg(denoise, process, scale, EVERY)
    assert difference(around(POINTS, t, CLASS), free(POINTS, t, CLASS)) < 1e-9


def test_both_guidances_add_up():
    """Around a model that is guided already: each adds its own share of the same gradient."""
    process = Flow()
    free = cfg(mixture(process, "v"), process, 2.0, EVERY)
    both = by_classifier(process, "v", 1.5, inner=free)(POINTS, at(process), CLASS)
    assert difference(both, by_classifier(process, "v", 3.5)(POINTS, at(process), CLASS)) < 1e-9


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m])
@pytest.mark.parametrize("process", [DDPM(), Flow()])
def test_sampling_concentrates_on_the_class_as_the_scale_grows(process, sampler):
    x = torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, times = torch.full((200,), 1), process.times(12)
    certain = []
    with torch.inference_mode():
        for scale in (0.0, 0.5, 1.0, 4.0):
            drawn = sampler(by_classifier(process, "v", scale), process, x, y, times, lambda: x)
            assert drawn.isfinite().all()
            near = (drawn[:, None, :, 0, 0] - MEANS).square().sum(-1).argmin(1)
            certain.append((near == 1).double().mean())
    assert abs(certain[0] - PRIOR[1]) < 0.1
    assert certain == sorted(certain)
    assert certain[2] > 0.9


def test_in_pure_noise_there_is_nothing_to_classify():
    process = Flow()
    said = by_classifier(process, "v", 5.0)(POINTS, at(process, 1.0), CLASS)
    assert (
        difference(
            said, mixture(process, "v")(POINTS, at(process, 1.0), torch.full_like(CLASS, EVERY))
        )
        == 0
    )


def test_scale_0_asks_no_classifier():
    around = classifier_guidance(
        toy(), PROCESSES["linear"], "v", lambda *at: pytest.fail("asked"), 0.0
    )
    assert (
        difference(around(X, at(PROCESSES["linear"]), Y), toy()(X, at(PROCESSES["linear"]), Y)) == 0
    )


def test_gradient_inside_inference_is_that_outside():
    """Sampling runs in inference mode, whose tensors autograd refuses; nothing of the gradient stays behind."""
    process, network = (
        Flow(),
        torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        ).requires_grad_(False),
    )
    classifier = NoisyClassifier(lambda x, t: network(x) * (1 + t[:, None]), process)
    x, t = POINTS.float(), at(process)
    outside = classifier.gradient(x, t, CLASS)
    with torch.inference_mode():
        inside = classifier.gradient(x + 0, t + 0, CLASS + 0)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = classifier.gradient(x + 0, t + 0, CLASS + 0)
    assert torch.equal(inside, outside)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - outside).abs().max() < 0.1 * outside.abs().max()
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    rise = [classifier.logits(p, t).log_softmax(1)[range(6), CLASS] for p in (x - step, x + step)]
    assert ((rise[1] - rise[0]) / 2 - (outside * step).flatten(1).sum(1)).abs().max() < 1e-3 * rise[
        1
    ].abs().max()


def test_loss_of_the_classifier_is_its_cross_entropy_at_the_noise_of_training():
    process = Flow()
    t = torch.tensor([0.1, 0.2, 0.45, 0.6, 0.8, 0.99], dtype=torch.float64)
    x0, eps = MEANS[CLASS][..., None, None], POINTS / 2
    classifier = NoisyClassifier(
        lambda x, time: x[:, :1, 0, 0] * torch.tensor([1.0, -1.0, -2.0]) + 0 * time[:, None],
        process,
    )
    loss = classifier_loss(classifier, x0, CLASS, t, eps)
    x_t = (1 - t).view(-1, 1, 1, 1) * x0 + t.view(-1, 1, 1, 1) * eps
    logits = classifier.logits(x_t, t)
    assert (loss.each + logits.log_softmax(1)[range(6), CLASS]).abs().max() < 1e-12
    right = (logits.argmax(1) == CLASS).double()
    assert torch.equal(loss.terms["accuracy"], right)
    assert tuple(loss.terms) == TERMS
