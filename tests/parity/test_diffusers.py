"""Against diffusers, on the maximum error: processes, posteriors, full trajectories, the network.

diffusers computes in float32. Here its modules get a torch and a numpy in which float32 means
float64, so that differences are the algorithms' own and the tolerance can be 1e-9.
"""

import importlib

import numpy as np
import pytest
import torch
from helpers.diffusion import Toy, noises, normal

from dit.build import build_network
from dit.diffusion import samplers
from dit.diffusion.process import DDPM, Denoiser, Flow, add_noise, posterior
from dit.runs.card import NetworkSpec
from dit.runs.formats.diffusers import diffusers_config, from_diffusers, to_diffusers

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 2, 4, 4)
Y = torch.arange(3)
SCHEDULES = {
    "linear": dict(beta_start=1e-4, beta_end=0.02),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
}


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module):
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name):
        return getattr(self._module, name)


@pytest.fixture
def make(monkeypatch):
    """make("DDPM", …): diffusers' DDPMScheduler in float64."""

    def scheduler(name, **options):
        cls = getattr(diffusers, f"{name}Scheduler")
        module = importlib.import_module(cls.__module__)
        monkeypatch.setattr(module, "torch", Double(torch))
        monkeypatch.setattr(module, "np", Double(np))
        if hasattr(module, "randn_tensor"):
            draws = noises(SHAPE)
            monkeypatch.setattr(module, "randn_tensor", lambda *args, **kw: draws())
        return cls(**options)

    return scheduler


def trajectory(scheduler, x, net, time_of=float, scale=lambda x, i: x, **options):
    """Every state of diffusers' loop."""
    states = []
    for i, t in enumerate(scheduler.timesteps):
        out = net(scale(x, i), torch.full((3,), time_of(t), dtype=torch.float64), Y)
        x = scheduler.step(out, t, x, **options).prev_sample
        states.append(x)
    return states


def our_states(sampler, process, objective, x, times, learn_sigma=False, **options):
    """Every state of our sampler, from runs over ever longer parts of the times."""
    denoise = Denoiser(Toy(learn_sigma), process, objective, learn_sigma)
    return [
        sampler(denoise, process, x, Y, times[: i + 2], noises(SHAPE), **options)
        for i in range(len(times) - 1)
    ]


def max_error(one, other):
    errors = [
        (a - b).abs().max() / a.abs().max().clamp(min=1) for a, b in zip(one, other, strict=True)
    ]
    return max(error.item() for error in errors)


def timesteps(times):
    """Our times, 1 … 1000, as diffusers counts them: 0 … 999."""
    return [int(t) - 1 for t in times[:-1]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_process(make, schedule):
    scheduler, process = make("DDPM", **SCHEDULES[schedule]), DDPM(schedule)
    x0, eps, t = normal(1000, 2, seed=1), normal(1000, 2, seed=2), torch.arange(1000)
    theirs = scheduler.add_noise(x0, eps, t)
    assert (theirs - add_noise(process, x0, eps, t + 1.0)).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 250, 7])
def test_posterior(make, schedule, steps):
    process = DDPM(schedule)
    times = process.times(min(steps, process.start))
    scheduler = make("DDPM", prediction_type="sample", clip_sample=False, **SCHEDULES[schedule])
    scheduler.set_timesteps(timesteps=timesteps(times))
    x_t, x0 = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    for t, s in zip(times[:-1], times[1:], strict=True):
        found = posterior(process, x_t, x0, t, s)
        for ours, kind in ((found.var_min, "fixed_small"), (found.var_max, "fixed_large")):
            theirs = scheduler._get_variance(int(t) - 1, variance_type=kind)
            assert (ours - theirs).abs().max() < 1e-12
    draw = noises(SHAPE)
    first = posterior(process, x_t, x0, *times[:2])
    step = scheduler.step(x0, int(times[0]) - 1, x_t).prev_sample
    assert (step - first.mean - first.var_min.sqrt() * draw()).abs().max() < 1e-9


OBJECTIVES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(make, schedule, objective, variance):
    process, x = DDPM(schedule), normal(*SHAPE, seed=0)
    times = process.times(12)
    scheduler = make(
        "DDPM",
        prediction_type=OBJECTIVES[objective],
        variance_type=f"fixed_{variance}",
        clip_sample=False,
        **SCHEDULES[schedule],
    )
    scheduler.set_timesteps(timesteps=timesteps(times))
    found = our_states(samplers.ddpm, process, objective, x, times, variance=variance)
    assert max_error(found, trajectory(scheduler, x, Toy())) < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_with_learned_variance(make, schedule):
    process, x = DDPM(schedule), normal(*SHAPE, seed=0)
    times = process.times(12)
    scheduler = make(
        "DDPM", variance_type="learned_range", clip_sample=False, **SCHEDULES[schedule]
    )
    scheduler.set_timesteps(timesteps=timesteps(times))
    found = our_states(
        samplers.ddpm, process, "eps", x, times, learn_sigma=True, variance="learned"
    )
    assert max_error(found, trajectory(scheduler, x, Toy(True))) < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(make, schedule, objective, eta):
    process, x = DDPM(schedule), normal(*SHAPE, seed=0)
    scheduler = make(
        "DDIM",
        prediction_type=OBJECTIVES[objective],
        clip_sample=False,
        timestep_spacing="leading",
        **SCHEDULES[schedule],
    )
    scheduler.set_timesteps(10)
    times = torch.tensor([*(scheduler.timesteps + 1), 0], dtype=torch.float64)  # 901, 801, … 1, 0
    found = our_states(samplers.ddim, process, objective, x, times, eta=eta)
    assert max_error(found, trajectory(scheduler, x, Toy(), eta=eta)) < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [4, 20])
def test_dpmpp_2m(make, schedule, objective, steps):
    process, x = DDPM(schedule), normal(*SHAPE, seed=0)
    times = process.times(steps)
    scheduler = make(
        "DPMSolverMultistep", prediction_type=OBJECTIVES[objective], **SCHEDULES[schedule]
    )
    scheduler.set_timesteps(timesteps=timesteps(times))
    found = our_states(samplers.dpmpp_2m, process, objective, x, times)
    # at the cosine's end alpha is 5e-5, and diffusers' 1 / sqrt(sigma^2 + 1) exact to 1e-8 only
    assert max_error(found, trajectory(scheduler, x, Toy())) < 1e-7


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_for_flows(make, shift):
    process, x = Flow(shift=shift), normal(*SHAPE, seed=0)
    scheduler = make(
        "DPMSolverMultistep",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
    scheduler.set_timesteps(10)
    times = scheduler.sigmas.double()  # from 0.999, as diffusers starts
    moments = iter(times)
    found = our_states(samplers.dpmpp_2m, process, "v", x, times)
    states = trajectory(scheduler, x, Toy(), lambda _: 1000 * next(moments))
    assert max_error(found, states) < 1e-9


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_euler_for_flows(make, shift, steps):
    process, x = Flow(shift=shift), normal(*SHAPE, seed=0)
    scheduler = make("FlowMatchEulerDiscrete", shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    times = process.times(steps)
    assert (scheduler.sigmas - times).abs().max() < 1e-12
    found = our_states(samplers.euler, process, "v", x, times)
    assert max_error(found, trajectory(scheduler, x, Toy())) < 1e-9


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_for_flows(make, shift):
    process, x = Flow(shift=shift), normal(*SHAPE, seed=0)
    scheduler = make("FlowMatchHeunDiscrete", shift=shift)
    scheduler.set_timesteps(10)
    times = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    found = our_states(samplers.heun, process, "v", x, times)
    states = trajectory(scheduler, x, Toy())
    assert max_error(found, [*states[1:-1:2], states[-1]]) < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heun(make, schedule, objective):
    """diffusers' state is x / alpha (2206.00364's variance-exploding form)."""
    process, x = DDPM(schedule), normal(*SHAPE, seed=0)
    times = process.times(10)
    alpha = process.coefficients(times).alpha
    scheduler = make("HeunDiscrete", prediction_type=OBJECTIVES[objective], **SCHEDULES[schedule])
    scheduler.set_timesteps(timesteps=timesteps(times))
    found = our_states(samplers.heun, process, objective, x, times)

    def scale(x, i):  # the network's input at call i; the second call of a step is at its end
        return x * alpha[(i + 1) // 2]

    states = trajectory(scheduler, x / alpha[0], Toy(), scale=scale)
    ends = [state * a for state, a in zip([*states[1:-1:2], states[-1]], alpha[1:], strict=True)]
    assert max_error(found, ends) < 1e-8  # at the cosine's end, x / alpha is 20,000 times x


def release_frequencies(model):
    """Set the release's time frequencies 10000^(-i/128); diffusers has 10000^(-i/127)."""
    for block in model.transformer_blocks:
        assert block.norm1.emb.time_proj.downscale_freq_shift == 1
        block.norm1.emb.time_proj.downscale_freq_shift = 0


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_network(learn_sigma):
    spec = NetworkSpec(
        model="DiT-Ti/4", input_size=16, in_channels=3, num_classes=5, learn_sigma=learn_sigma
    )
    torch.manual_seed(0)
    net = build_network(spec).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model = diffusers.DiTTransformer2DModel(**diffusers_config(spec)).eval()
    model.load_state_dict(to_diffusers(net.state_dict(), spec), strict=True)
    x, t, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, 4, 5])
    release_frequencies(model)
    with torch.no_grad():
        theirs, found = model(x, t, y).sample, net(x, t.float(), y)
        assert found.std() > 0.1
        assert (theirs - found).abs().max() < 1e-5 * found.abs().max()  # float32
        theirs = model.double()(x.double(), t, y).sample
        found = net.double()(x.double(), t.float(), y)
        # both embed times in float32
        assert (theirs - found).abs().max() < 1e-6 * found.abs().max()


def test_import_back_from_diffusers():
    spec = NetworkSpec(
        model="DiT-Ti/4", input_size=16, in_channels=3, num_classes=5, learn_sigma=True
    )
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**diffusers_config(spec)).eval()
    shared = {
        name.removeprefix("transformer_blocks.0."): tensor
        for name, tensor in model.state_dict().items()
    }
    for block in model.transformer_blocks:  # as in published ones, where all blocks embed alike
        block.load_state_dict(
            {k: v for k, v in shared.items() if k.startswith("norm1.emb.")}, strict=False
        )
    net = build_network(spec).eval()
    net.load_state_dict(from_diffusers(model.state_dict(), spec), strict=True)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.tensor([1, 5])
    release_frequencies(model)
    with torch.no_grad():
        theirs = model(x, t, y).sample
        assert theirs.std() > 0.1
        assert (theirs - net(x, t.float(), y)).abs().max() < 1e-5 * theirs.abs().max()
