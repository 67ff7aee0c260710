"""Guidance: classifier-free, by a weaker denoiser, by a classifier."""

import pytest
import torch
from helpers.diffusion import normal, seeded, time, toy

from dit.diffusion.classifier import TERMS, NoisyClassifier, classifier_loss
from dit.diffusion.guidance import cfg, classifier_guidance, unconditional, with_objective
from dit.diffusion.process import DDPM, Denoiser, Flow, target
from dit.diffusion.samplers import ddim, ddpm, dpmpp_2m, heun

NULL = 9
X, Y = normal(3, 4, 2, 2), torch.tensor([1, 2, 3])

both_processes = pytest.mark.parametrize("process", [DDPM(), Flow()], ids=["linear", "flow"])
all_objectives = pytest.mark.parametrize("objective", ["eps", "x0", "v"])


def at(process, part=0.5):
    return time(process.end * part)


def guided(denoise, scale, part=0.5, **options):
    process = denoise.process
    return cfg(denoise, process, scale, NULL, **options)(X, at(process, part), Y)


def difference(one, other):
    return max((a - b).abs().max() for a, b in zip(one[:3], other[:3], strict=True))


def extrapolated(strong, weak, scale):
    return [w + scale * (s - w) for s, w in zip(strong[:3], weak[:3], strict=True)]


@all_objectives
@both_processes
def test_formula(process, objective):
    """2207.12598, equation 6: unconditional at 0, conditional at 1, linear throughout."""
    denoise = toy(process, objective)
    conditional = denoise(X, at(process), Y)
    unconditional = denoise(X, at(process), torch.full_like(Y, NULL))
    assert difference(guided(denoise, 1.0), conditional) == 0
    for scale in (0.0, 0.5, 1.5, 4.0):
        expected = extrapolated(conditional, unconditional, scale)
        assert difference(guided(denoise, scale), expected) < 1e-12


@both_processes
def test_guided_predictions_are_consistent(process):
    """Guided data and noise still add up to x_t, so that samplers may use either."""
    prediction = guided(toy(process, "v"), 4.0)
    alpha, sigma, *_ = process.coefficients(at(process))
    assert (alpha * prediction.x0 + sigma * prediction.eps - X).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("scale", "labels"), [(4.0, [1, 2, 3, NULL, NULL, NULL]), (1.0, [1, 2, 3])]
)
def test_one_call_without_the_unconditional_half_where_none_is_needed(scale, labels):
    denoise = toy(DDPM())
    guided(denoise, scale)
    assert denoise.network.labels == [labels]


def test_guidance_of_three_channels_as_in_the_release():
    denoise = toy(DDPM(), learn_sigma=True)
    plain, full = guided(denoise, 1.0), guided(denoise, 4.0)
    three = guided(denoise, 4.0, channels=3)
    for c, f, g in zip(plain[:3], full[:3], three[:3], strict=True):
        assert torch.equal(g[:, :3], f[:, :3])
        assert torch.equal(g[:, 3:], c[:, 3:])
        assert (g[:, :3] - c[:, :3]).abs().min() > 1e-6
    assert difference(guided(denoise, 4.0, channels=4), full) == 0


@pytest.mark.parametrize("options", [{}, dict(channels=3)])
def test_variance_stays_conditional(options):
    denoise = toy(DDPM(), learn_sigma=True)
    conditional = guided(denoise, 1.0)
    assert torch.equal(guided(denoise, 4.0, **options).var_fraction, conditional.var_fraction)


@both_processes
@pytest.mark.parametrize(
    ("part", "inside"),
    [(0.2, False), (0.25, True), (0.5, True), (0.75, True), (0.8, False), (1.0, False)],
)
def test_interval(process, part, inside):
    denoise = toy(process)
    prediction = guided(denoise, 4.0, part, interval=(0.25, 0.75))
    assert len(denoise.network.labels[0]) == (6 if inside else 3)
    if not inside:
        assert difference(prediction, denoise(X, at(process, part), Y)) == 0


def test_sampling_calls_the_network_once_a_step():
    process = DDPM()
    denoise = toy(process, learn_sigma=True)
    times = process.times(10)  # 1000, 889, …, 1
    around = cfg(denoise, process, 2.0, NULL, interval=(0.0, 0.5))
    ddpm(around, process, X, Y, times, lambda: torch.zeros_like(X), variance="learned")
    assert [len(labels) for labels in denoise.network.labels] == [3] * 5 + [6] * 5


# -- autoguidance ----------------------------------------------------------------------------------


@both_processes
def test_a_guide_replaces_the_null_class(process):
    """2406.02507: guided by itself at the null class, a denoiser is guided as by that class."""
    denoise, weak = toy(process, "v"), toy(process, "v", learn_sigma=True)
    itself = unconditional(denoise, NULL)
    assert difference(guided(denoise, 3.0, guide=itself), guided(denoise, 3.0)) == 0
    halved = lambda x, t, y: weak(x / 2, t, y)  # noqa: E731
    prediction = guided(denoise, 3.0, guide=halved)
    strong = denoise(X, at(process), Y)
    expected = extrapolated(strong, halved(X, at(process), Y), 3.0)
    assert difference(prediction, expected) < 1e-12
    assert prediction.var_fraction is None  # as the strong one, not the weak
    assert weak.network.labels[-1] == [1, 2, 3]


def test_a_guide_of_another_objective_is_converted():
    process = DDPM()
    denoise, weak = toy(process, "v"), toy(process, "eps")
    prediction = guided(denoise, 3.0, guide=with_objective(weak, process, "v"))
    v = target(process, "v", prediction.x0, prediction.eps, at(process))
    assert (prediction.out - v).abs().max() < 1e-12


# -- a classifier, on a mixture of Gaussians whose every term is known -----------------------------

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
SPREAD, PRIOR = 0.5, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
ALL = len(MEANS)  # the null class
POINTS, CLASS = 2 * normal(6, 2, 1, 1, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])


def time_of(process, network_time):
    return (network_time[0] + 1 if isinstance(process, DDPM) else network_time[0] / 1000).cpu()


def log_joint(process, x, t):
    """log p(x_t, k) [B, 3] up to a constant."""
    alpha, sigma, *_ = process.coefficients(t)
    var = alpha**2 * SPREAD**2 + sigma**2
    return PRIOR.log() - (x[:, None, :, 0, 0] - alpha * MEANS).square().sum(-1) / (2 * var)


def mixture(process, objective="v"):
    """The exact denoiser of the mixture, conditional on a class or, for the null class, on none."""

    def network(x, network_time, y):
        t = time_of(process, network_time)
        alpha, sigma, *_ = process.coefficients(t)
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        x0_of_class = MEANS + gain * (x[:, None, :, 0, 0] - alpha * MEANS)  # [B, 3, 2]
        known = torch.nn.functional.one_hot(y.clamp(max=ALL - 1), ALL).double()
        weight = torch.where(y[:, None] == ALL, log_joint(process, x, t).softmax(1), known)
        x0 = (weight[..., None] * x0_of_class).sum(1)[..., None, None]
        return target(process, objective, x0, (x - alpha * x0) / sigma, t)

    return Denoiser(network, process, objective)


def unconditional_mixture(process, objective="v"):
    return unconditional(mixture(process, objective), ALL)


def by_classifier(process, objective, scale, inner=None):
    """Guidance by the exact classifier of the mixture."""
    classifier = NoisyClassifier(lambda x, t: log_joint(process, x, time_of(process, t)), process)
    inner = inner or unconditional_mixture(process, objective)
    return classifier_guidance(inner, process, objective, classifier.gradient, scale)


@all_objectives
@pytest.mark.parametrize("process", [DDPM(), DDPM("cosine"), Flow()])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.95])
def test_bayes(process, objective, part):
    """As p(x_t | y) is p(x_t) p(y | x_t), scale 1 makes the unconditional model conditional."""
    t = at(process, part)
    prediction = by_classifier(process, objective, 1.0)(POINTS, t, CLASS)
    assert difference(prediction, mixture(process, objective)(POINTS, t, CLASS)) < 1e-9
    assert (
        difference(prediction, unconditional_mixture(process, objective)(POINTS, t, CLASS)) > 1e-3
    )


@both_processes
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_classifier_free_guidance_is_guidance_by_the_implicit_classifier(process, scale):
    """2207.12598, section 3.2: grad log p(y | x_t) = -(conditional - unconditional eps) / sigma."""
    denoise, t = mixture(process), at(process)
    sigma = process.coefficients(t).sigma

    def implicit(x, t, y):
        return -(denoise(x, t, y).eps - unconditional_mixture(process)(x, t, y).eps) / sigma

    around = classifier_guidance(unconditional_mixture(process), process, "v", implicit, scale)
    free = cfg(denoise, process, scale, ALL)
    assert difference(around(POINTS, t, CLASS), free(POINTS, t, CLASS)) < 1e-9


def test_both_guidances_add_up():
    process = Flow()
    free = cfg(mixture(process), process, 2.0, ALL)
    both = by_classifier(process, "v", 1.5, inner=free)(POINTS, at(process), CLASS)
    assert difference(both, by_classifier(process, "v", 3.5)(POINTS, at(process), CLASS)) < 1e-9


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m])
@both_processes
def test_samples_concentrate_on_the_class_as_the_scale_grows(process, sampler):
    x, y, times = normal(200, 2, 1, 1, seed=2), torch.full((200,), 1), process.times(12)
    shares = []
    with torch.inference_mode():
        for scale in (0.0, 0.5, 1.0, 4.0):
            samples = sampler(by_classifier(process, "v", scale), process, x, y, times, lambda: x)
            assert samples.isfinite().all()
            nearest = (samples[:, None, :, 0, 0] - MEANS).square().sum(-1).argmin(1)
            shares.append((nearest == 1).double().mean())
    assert abs(shares[0] - PRIOR[1]) < 0.1
    assert shares == sorted(shares)
    assert shares[2] > 0.9


def test_pure_noise_is_not_guided():
    t = at(Flow(), 1.0)
    prediction = by_classifier(Flow(), "v", 5.0)(POINTS, t, CLASS)
    assert difference(prediction, unconditional_mixture(Flow())(POINTS, t, CLASS)) == 0


def test_scale_0_calls_no_classifier():
    fail = lambda *args: pytest.fail("called")  # noqa: E731
    around = classifier_guidance(toy(DDPM()), DDPM(), "eps", fail, 0.0)
    assert difference(around(X, at(DDPM()), Y), toy(DDPM())(X, at(DDPM()), Y)) == 0


def small_classifier():
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    network = torch.nn.Sequential(torch.nn.Flatten(), *layers).requires_grad_(False)
    return NoisyClassifier(lambda x, t: network(x) * (1 + t[:, None]), Flow())


def test_gradient_in_inference_mode_and_by_differences():
    """Sampling runs in inference mode, whose tensors autograd refuses."""
    classifier, x, t = small_classifier(), POINTS.float(), at(Flow())
    gradient = classifier.gradient(x, t, CLASS)
    with torch.inference_mode():
        inside = classifier.gradient(x + 0, t + 0, CLASS + 0)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = classifier.gradient(x + 0, t + 0, CLASS + 0)
    assert torch.equal(inside, gradient)
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - gradient).abs().max() < 0.1 * gradient.abs().max()

    step = 1e-3 * torch.randn(x.shape, generator=seeded(3))
    log_p = [classifier.logits(p, t).log_softmax(1)[range(6), CLASS] for p in (x - step, x + step)]
    expected = (gradient * step).flatten(1).sum(1)
    assert ((log_p[1] - log_p[0]) / 2 - expected).abs().max() < 1e-3 * log_p[1].abs().max()


def test_loss_of_the_classifier_is_its_cross_entropy():
    t = time([0.1, 0.2, 0.45, 0.6, 0.8, 0.99])
    x0, eps = MEANS[CLASS][..., None, None], POINTS / 2
    weights = torch.tensor([1.0, -1.0, -2.0])
    classifier = NoisyClassifier(lambda x, t: x[:, :1, 0, 0] * weights + 0 * t[:, None], Flow())
    loss = classifier_loss(classifier, x0, CLASS, t, eps)
    x_t = (1 - t).view(-1, 1, 1, 1) * x0 + t.view(-1, 1, 1, 1) * eps
    logits = classifier.logits(x_t, t)
    assert (loss.each + logits.log_softmax(1)[range(6), CLASS]).abs().max() < 1e-12
    assert torch.equal(loss.terms["accuracy"], (logits.argmax(1) == CLASS).double())
    assert tuple(loss.terms) == TERMS
