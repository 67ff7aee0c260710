"""LightningDiT against a second implementation of its layers and process, and bad files of it."""

import math
import re

import pytest
import torch
from helpers.foreign import dit_weights, saved, without
from torch.nn import functional as F

from dit.build import build_denoiser, build_network, build_process
from dit.cli import main
from dit.diffusion import samplers
from dit.diffusion.guidance import cfg
from dit.errors import UserError
from dit.models.sizes import SIZES
from dit.runs.formats.foreign import read_foreign
from dit.runs.weights import read_weights
from dit.sampling.load import load_run

STEPS = 10
DEPTH, WIDTH, HEADS = 2, 32, 2
MODERN = {"swiglu", "rope", "rmsnorm"}
KINDS = ("weight", "bias")
CONFIG = {
    "data": {"num_classes": 5, "image_size": 64, "latent_norm": True, "latent_multiplier": 1.0},
    "model": {"model_type": "LightningDiT-Ti/4"},
    "transport": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None},
    "sample": {"timestep_shift": 0.3},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", dict(depth=DEPTH, hidden_size=WIDTH, num_heads=HEADS))


def angles(side, head):
    """Angles [T, d / 2] of each pair of features: those of rows, then those of columns."""
    frequencies = 10_000 ** (-torch.arange(head // 4).double() / (head // 4))
    places = torch.arange(side).double()
    rows = places.repeat_interleave(side)[:, None] * frequencies
    columns = places.repeat(side)[:, None] * frequencies
    return torch.cat([rows, columns], dim=1)


def theirs(layers=frozenset(MODERN), learn_sigma=False, shifts=True, heads=HEADS):
    """Random weights with the names and shapes of LightningDiT."""
    weights = dit_weights(learn_sigma=learn_sigma)
    width = len(weights["x_embedder.proj.weight"])
    hidden = int(2 / 3 * 4 * width)  # 85, no multiple of 8
    torch.manual_seed(1)
    for block in [f"blocks.{i}" for i in range(DEPTH)]:
        if "swiglu" in layers:
            weights = without(
                weights, *(f"{block}.mlp.fc{i}.{kind}" for i in (1, 2) for kind in KINDS)
            )
            weights[f"{block}.mlp.w12.weight"] = 0.3 * torch.randn(2 * hidden, width)
            weights[f"{block}.mlp.w12.bias"] = 0.3 * torch.randn(2 * hidden)
            weights[f"{block}.mlp.w3.weight"] = 0.3 * torch.randn(width, hidden)
            weights[f"{block}.mlp.w3.bias"] = 0.3 * torch.randn(width)
        for kind, names, size in [
            ("rmsnorm", ("norm1", "norm2"), width),
            ("qknorm", ("attn.q_norm", "attn.k_norm"), width // heads),
        ]:
            for name in names if kind in layers else ():
                weights[f"{block}.{name}.weight"] = 1 + 0.3 * torch.randn(size)
        for kind in () if shifts else KINDS:
            name = f"{block}.adaLN_modulation.1.{kind}"
            weights[name] = weights[name][: 4 * width].clone()
    if "rmsnorm" in layers:
        weights["final_layer.norm_final.weight"] = 1 + 0.3 * torch.randn(width)
    if "rope" in layers:
        turns = angles(4, width // heads).repeat_interleave(2, dim=1)
        weights["feat_rope.freqs_cos"] = turns.cos().float()
        weights["feat_rope.freqs_sin"] = turns.sin().float()
    return weights


def published(weights, x, t, y, heads=HEADS):
    """The network of LightningDiT (2501.01423), in float64: its velocity, data - noise, at t."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    width = len(w["x_embedder.proj.weight"])
    head = width // heads

    def linear(name, z):
        return F.linear(z, w[f"{name}.weight"], w[f"{name}.bias"])

    def rms(z, scale):
        return z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    def norm(name, z):
        if f"{name}.weight" in w:
            return rms(z, w[f"{name}.weight"])
        return F.layer_norm(z, z.shape[-1:], eps=1e-6)

    def turned(z):
        if "feat_rope.freqs_cos" not in w:
            return z
        # a pair is a complex number, and turning it a product
        pairs = torch.view_as_complex(z.unflatten(-1, (head // 2, 2)).contiguous())
        turn = torch.polar(torch.ones(16, head // 2).double(), angles(4, head))
        return torch.view_as_real(pairs * turn).flatten(-2)

    def attention(name, z):
        q, k, v = (
            part.unflatten(-1, (heads, head)).transpose(1, 2)
            for part in linear(f"{name}.qkv", z).chunk(3, dim=-1)
        )
        if f"{name}.q_norm.weight" in w:
            q, k = rms(q, w[f"{name}.q_norm.weight"]), rms(k, w[f"{name}.k_norm.weight"])
        weight = (turned(q) @ turned(k).mT / math.sqrt(head)).softmax(dim=-1)
        return linear(f"{name}.proj", (weight @ v).transpose(1, 2).flatten(2))

    def mlp(name, z):
        if f"{name}.w12.weight" not in w:
            return linear(f"{name}.fc2", F.gelu(linear(f"{name}.fc1", z), approximate="tanh"))
        gate, value = linear(f"{name}.w12", z).chunk(2, dim=-1)
        return linear(f"{name}.w3", gate * gate.sigmoid() * value)

    patches = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=4)
    z = patches.flatten(2).mT + w["pos_embed"]
    turns = t.double()[:, None] * 10_000 ** (-torch.arange(128).double() / 128)
    waves = torch.cat([turns.cos(), turns.sin()], dim=1)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    c = F.silu(time + w["y_embedder.embedding_table.weight"][y])

    for block in [f"blocks.{i}" for i in range(DEPTH)]:
        parts = linear(f"{block}.adaLN_modulation.1", c)[:, None].chunk(
            len(w[f"{block}.adaLN_modulation.1.weight"]) // width, dim=-1
        )
        if len(parts) == 4:
            scale1, gate1, scale2, gate2 = parts
            shift1 = shift2 = torch.zeros(width).double()
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts
        z = z + gate1 * attention(
            f"{block}.attn", norm(f"{block}.norm1", z) * (1 + scale1) + shift1
        )
        z = z + gate2 * mlp(f"{block}.mlp", norm(f"{block}.norm2", z) * (1 + scale2) + shift2)

    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    out = linear("final_layer.linear", norm("final_layer.norm_final", z) * (1 + scale) + shift)
    image = out.reshape(len(x), 4, 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4)
    return image.reshape(len(x), -1, 16, 16)[:, :3]


def imported(tmp_path, content, asked=None):
    foreign = read_foreign(saved(tmp_path, content), asked)
    network = build_network(foreign.spec).eval().requires_grad_(False)
    network.load_state_dict(foreign.state_dict)
    config = foreign.config("identity")
    return foreign, build_denoiser(config, network), build_process(config)


def inputs():
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 4, 5])


def error(found, expected):
    assert expected.std() > 0.1
    return (found - expected).abs().max() / expected.abs().max()


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "block"),
    [
        (dict(), "modern-qknorm-heads64"),
        (dict(layers=MODERN | {"qknorm"}), "modern-heads64"),
        (dict(learn_sigma=True, shifts=False), "modern-qknorm-heads64"),
        (dict(layers={"swiglu"}), "plain+swiglu"),
        (dict(layers={"rmsnorm"}, shifts=False), "plain+rmsnorm"),
        (dict(layers={"rope"}), "plain+rope"),
    ],
)
@pytest.mark.parametrize("t", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.portable
def test_it_predicts_what_its_own_network_predicts(tmp_path, options, block, t):
    weights = theirs(**options)
    foreign, denoise, _ = imported(tmp_path, {"ema": weights})
    assert foreign.format == "lightningdit"
    assert foreign.spec.block == block
    x, y = inputs()
    expected = published(weights, x, torch.full((3,), t), y)
    ours = denoise(x, torch.tensor(1 - t, dtype=torch.float64), y)
    assert error(-ours.out, expected) < 1e-5
    # x = t data + (1 - t) noise, and v = data - noise
    assert error(ours.x0, x + (1 - t) * expected) < 1e-5


@pytest.mark.portable
@pytest.mark.parametrize(
    ("sample", "ours"),
    [
        ({"timestep_shift": 0.3}, 1 / 0.3),
        ({"timestep_shift": 0}, 1.0),
        ({"timestep_shift": 1.0}, 1.0),
        ({}, 1.0),
    ],
)
def test_it_samples_as_its_own_ode_at_its_own_times(tmp_path, sample, ours):
    weights = theirs()
    config, shift = CONFIG | {"sample": sample}, sample.get("timestep_shift", 0)
    foreign, denoise, process = imported(tmp_path, {"ema": weights, "config": config})
    assert foreign.config("identity").time_shift == ours
    x, y = inputs()
    uniform = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    times = shift * uniform / (1 + (shift - 1) * uniform) if shift else uniform
    z = x.double()
    for t, later in zip(times[:-1], times[1:], strict=True):
        z = z + (later - t) * published(weights, z, t.expand(3), y)
    found = samplers.euler(denoise, process, x, y, process.times(STEPS), lambda: None)
    assert error(found, z) < 1e-5


@pytest.mark.portable
def test_it_is_guided_as_its_own_samples(tmp_path):
    """The first channels alone, and not at times below 0.125 of its direction."""
    weights = theirs()
    _, denoise, process = imported(tmp_path, {"ema": weights})
    guided = cfg(denoise, process, 3.0, 5, interval=(0.0, 0.875), channels=1)
    x, y = inputs()
    for t, scale in ((0.1, 1), (0.5, 3)):
        strong, weak = (published(weights, x, torch.full((3,), t), c) for c in (y, 0 * y + 5))
        expected = torch.cat([(weak + scale * (strong - weak))[:, :1], strong[:, 1:]], dim=1)
        found = guided(x, torch.tensor(1 - t, dtype=torch.float64), y)
        assert error(-found.out, expected) < 1e-5


# -- what a file says ------------------------------------------------------------------------------


def test_heads_are_those_of_the_rotation(tmp_path, monkeypatch):
    """Heads of 64 where ours have 128, as in LightningDiT-1p0B."""
    monkeypatch.setitem(SIZES, "Ti", dict(depth=DEPTH, hidden_size=128, num_heads=1))
    weights = theirs()
    foreign, denoise, _ = imported(tmp_path, {"ema": weights})
    assert foreign.spec.block == "modern-qknorm"
    x, y = inputs()
    expected = published(weights, x, torch.full((3,), 0.3), y, heads=2)
    assert error(-denoise(x, torch.tensor(0.7), y).out, expected) < 1e-5


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        (MODERN, "modern-qknorm"),
        (MODERN | {"qknorm"}, "modern"),
        ({"swiglu"}, "plain+swiglu"),
    ],
)
def test_usual_heads_of_64_have_the_shorter_name(tmp_path, monkeypatch, layers, block):
    """`--init` compares names; these are the same networks with and without heads64."""
    monkeypatch.setitem(SIZES, "Ti", dict(depth=DEPTH, hidden_size=128, num_heads=2))
    foreign, _, _ = imported(tmp_path, {"ema": theirs(layers)})
    assert foreign.spec.block == block


def test_prefixes_averages_and_sections_of_flags(tmp_path):
    content = {"model": theirs(), "ema": {f"module.{k}": v for k, v in theirs().items()}}
    foreign = read_foreign(saved(tmp_path, {**content, "config": CONFIG}))
    assert foreign.notes[0] == "read as LightningDiT: it has blocks.0.mlp.w12.weight"
    assert foreign.notes[1] == "the weights under `ema`, names without `module.`"
    config = foreign.config("identity")
    assert (config.image_size, foreign.spec.num_classes) == (64, 5)
    assert (config.process, config.objective, config.latent_norm) == ("flow", "v", "data")
    assert (config.time_sampling, config.cosine) == ("logit-normal", 1.0)


def test_without_modern_layers_its_flags_or_the_user_tell(tmp_path):
    """Its plainest network has the tensors of a SiT, and is one."""
    weights = theirs(layers=set())
    assert (
        read_foreign(saved(tmp_path, {"ema": weights, "config": CONFIG})).format == "lightningdit"
    )
    ours = read_foreign(saved(tmp_path, weights), "lightningdit")
    sit = read_foreign(saved(tmp_path, weights), "sit")
    assert ours.spec == sit.spec
    assert all(torch.equal(ours.state_dict[name], sit.state_dict[name]) for name in sit.state_dict)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("transport", {"path_type": "GVP"}, "path_type GVP; expected path_type Linear of Light"),
        ("transport", {"prediction": "score"}, "prediction score"),
        ("data", {"latent_norm": False}, "latent_norm False"),
        ("data", {"latent_multiplier": 0.18215}, "latent_multiplier 0.18215"),
    ],
)
def test_other_trainings_are_refused(tmp_path, section, change, message):
    config = CONFIG | {section: CONFIG[section] | change}
    with pytest.raises(UserError, match=message):
        read_foreign(saved(tmp_path, {"ema": theirs(), "config": config}))


def test_it_is_not_read_as_another(tmp_path):
    file = saved(tmp_path, theirs())
    for asked in ("dit", "sit", "repa"):
        with pytest.raises(UserError, match=f"--format {asked} .*expected --format lightningdit"):
            read_foreign(file, asked)


def test_missing_and_odd_tensors_are_named(tmp_path):
    weights = theirs()
    gate, turn = "blocks.1.mlp.w12.weight", "feat_rope.freqs_cos"
    ids = torch.ones(170, WIDTH, dtype=torch.int8)
    for content, message in [
        (without(weights, gate), "no blocks.1.mlp.fc1.weight among"),
        (without(weights, "final_layer.norm_final.weight"), "no final_layer.norm_final.weight"),
        (without(weights, "blocks.1.norm1.weight"), "no blocks.1.norm1.weight among"),
        ({**weights, "extra": torch.ones(1)}, "unknown extra"),
        ({**weights, gate: weights[gate][:100]}, r"blocks.1.mlp.fc1.weight is \[112, 32\] where"),
        ({**weights, gate: ids}, r"blocks.1.mlp.fc1.weight is \[170, 32\] where"),
        ({**weights, gate: weights[gate][:169]}, r"blocks.1.mlp.fc1.weight is \[169, 32\] where"),
        ({**weights, gate: weights[gate].to_sparse()}, r"blocks.1.mlp.fc1.weight is \[170, 32\]"),
        ({**weights, gate: torch.tensor(1.0)}, r"blocks.1.mlp.fc1.weight is \[\] where"),
        ({**weights, "blocks.1.mlp.w3.weight": torch.ones(3)}, r"fc2.weight is \[3\] where"),
        ({**weights, gate: weights[gate] / 0}, "blocks.1.mlp.fc1.weight .*NaN or infinite"),
        (
            {**weights, turn: weights[turn] + 0.01},
            "other positions than axial .* cannot be imported",
        ),
        ({**weights, turn: weights[turn][:9]}, "of other positions"),
        ({**weights, turn: torch.ones(16, 24)}, "heads of 24 features where DiT-Ti/4 has 16 or 64"),
        ({**weights, turn: torch.tensor(1.0)}, "heads of 0 features"),
        ({**weights, "blocks.0.attn.q_norm.bias": torch.ones(16)}, "keys with LayerNorm"),
        (
            without(weights, *(n for n in weights if n.startswith("blocks.1."))),
            "1 blocks, width 32",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            read_foreign(saved(tmp_path, content))


def test_half_precision_is_read(tmp_path):
    """The numbers of its rotation are then rounded."""
    half = {name: tensor.bfloat16() for name, tensor in theirs().items()}
    foreign = read_foreign(saved(tmp_path, {"ema": half}))
    assert torch.equal(foreign.state_dict["pos_embed"], half["pos_embed"].float())


# -- the command -----------------------------------------------------------------------------------


def statistics(**changes):
    """As its data set computes them: [1, C, 1, 1]."""
    mean = torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1)
    return {"mean": mean, "std": mean.abs() + 1} | changes


def convert(tmp_path, *flags):
    file = saved(tmp_path, {"ema": theirs(), "config": CONFIG}, "lightning.pt")
    return main(["convert", str(file), str(tmp_path / "out.safetensors"), *map(str, flags)])


def test_the_command_records_statistics_shift_and_autoencoder(tmp_path, capsys):
    stats = saved(tmp_path, statistics(), "latents_stats.pt")
    assert convert(tmp_path, "--vae", "identity", "--latent-stats", stats) == 0
    printed = capsys.readouterr().out
    assert "sampling shifts times by 3.33333, as the card records" in printed
    assert "--sampler euler --steps 249 --cfg-scale 6.7 --cfg-channels 3" in printed
    out = tmp_path / "out.safetensors"
    card = read_weights(out).card
    assert (card.latent_mean, card.latent_std) == ([0.5, -1.0, 2.0], [1.5, 2.0, 3.0])
    assert card.network.block == card.config.block == "modern-qknorm-heads64"

    run = load_run(out, torch.device("cpu"))
    assert run.autoencoder.shift.flatten().tolist() == [0.5, -1.0, 2.0]
    assert run.denoise.process.shift == 1 / 0.3
    assert main(["info", str(out)]) == 0
    words = capsys.readouterr().out.split()
    assert "blocks with rmsnorm, rope, swiglu," in " ".join(words)
    assert "logit-normal times; sampled at times shifted by 3.33" in " ".join(words)
    assert main(["info", str(tmp_path / "lightning.pt")]) == 0
    assert "LightningDiT: it has blocks.0.mlp.w12.weight" in capsys.readouterr().out


def test_the_command_demands_autoencoder_and_statistics(tmp_path, capsys):
    stats = saved(tmp_path, statistics(), "latents_stats.pt")
    for flags, message in [
        (["--latent-stats", stats], "is a LightningDiT of 3 latent channels; expected the autoenc"),
        (["--vae", "identity"], "zero mean and unit deviation; expected the statistics"),
    ]:
        assert convert(tmp_path, *flags) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert "as the card records" not in printed.out
    assert not (tmp_path / "out.safetensors").exists()

    file = saved(tmp_path, dit_weights(), "dit.pt")
    flags = ["--format", "dit", "--latent-stats", str(stats)]
    assert main(["convert", str(file), str(tmp_path / "out.safetensors"), *flags]) == 2
    assert "with a DiT; expected a LightningDiT with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": torch.ones(3)}, "no numbers std, only mean"),
        (torch.ones(3), "no numbers mean;"),
        (statistics(std=[1.0, 1.0, 1.0]), "no numbers std"),
        (statistics(mean=torch.ones(3, dtype=torch.int64)), "no numbers mean"),
        (statistics(mean=torch.ones(3).to_sparse()), "no numbers mean"),
        (statistics(mean=torch.full((3,), 1e300, dtype=torch.float64)), "a finite number for"),
        (statistics(std=torch.ones(1, 4, 1, 1)), r"std of shape \[1, 4, 1, 1\]; expected a finite"),
        (statistics(mean=torch.tensor([0, 0, math.nan])), "a finite number for each of 3 channels"),
        (
            statistics(std=torch.tensor([1.0, 0.0, 1.0])),
            "deviations down to 0; expected all above 0",
        ),
        ({"mean": print}, "would run code when it is loaded"),
    ],
)
def test_bad_statistics_are_refused_by_name(tmp_path, capsys, content, message):
    stats = saved(tmp_path, content, "stats.pt")
    assert convert(tmp_path, "--vae", "identity", "--latent-stats", stats) == 2
    error = capsys.readouterr().err
    assert str(stats) in error
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_statistics_that_are_no_file_are_refused(tmp_path, capsys):
    missing = tmp_path / "none.pt"
    assert convert(tmp_path, "--vae", "identity", "--latent-stats", missing) == 2
    assert (
        f"--latent-stats: no file {missing}; expected the latents_stats" in capsys.readouterr().err
    )
