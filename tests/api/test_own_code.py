"""A network and a data set of the user's own: MODULE:CLASS in all commands, objects in Python."""

import json
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.runs import TINY
from helpers.samples import pixels
from PIL import Image
from safetensors.torch import load_file

import dit
from dit.api.train import chosen_settings
from dit.build import build_network, count_multiply_adds
from dit.cli import main
from dit.commands.sample import sample
from dit.config import SampleConfig
from dit.data.labels import Columns
from dit.data.own import Arrays, OwnImages
from dit.distributed.ranks import Ranks
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import read_header

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, input_size, in_channels, num_classes, **kwargs):
        super().__init__()
        self.classes = nn.Embedding(num_classes + 1, 8)
        self.times = nn.Linear(1, 8)
        self.enter = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, in_channels, 3, padding=1)

    def forward(self, x, t, y):
        condition = self.classes(y) + self.times(t[:, None] / 1000)
        return self.leave(torch.relu(self.enter(x) + condition[..., None, None]))


class Wide(Net):
    def __init__(self, width):
        super().__init__(8, 3, 2)


class Late(Net):
    def forward(self, x, t, y):
        return super().forward(x, t, y) + x.mean().item()


class Wrong(Net):
    def forward(self, x, t, y):
        return super().forward(x, t, y)[:, :1]


class Empty(Net):
    def __init__(self, input_size, in_channels, num_classes):
        nn.Module.__init__(self)
        self.layers = [nn.Linear(1, 1)]

    def forward(self, x, t, y):
        return x


class Frozen(Net):
    def __init__(self, *sizes, **kwargs):
        super().__init__(*sizes, **kwargs)
        self.requires_grad_(False)


class Short(Net):
    def __init__(self, input_size, in_channels, num_classes):
        super().__init__(input_size, in_channels, num_classes - 1)
"""
DATA = """
import numpy as np


class Squares:
    classes = ["dark", "light"]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 128, (10, 8, 3), np.uint8)
        return pixels + 127 * np.uint8(index % 2), index % 2


class Unreadable(Squares):
    def __getitem__(self, index):
        if index == 7:
            raise OSError("no such image")
        return super().__getitem__(index)


class Floats(Squares):
    targets = [0] * 40

    def __getitem__(self, index):
        return np.zeros((8, 8, 3)), 0


number = 3
"""
OWN = "--data ownset:Squares --model ownnet:Net "
SHORT = OWN + (
    "--vae identity --image-size 8 --steps 4 --batch-size 8 --log-every 2 --sample-every 0 "
    "--ckpt-every 2 --precision fp32 --warmup 1"
)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with own modules, which is the current one."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ownnet.py").write_text(NETWORK)
    (folder / "ownset.py").write_text(DATA)
    before, path = os.getcwd(), [*sys.path]
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path
    for name in ("ownnet", "ownset"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(modules):
    """A run of them, trained by the command."""
    out = modules / "run"
    assert main(f"train {SHORT} --out {out}".split()) == 0
    return out


def weights_of(run):
    return load_file(next((run / "checkpoints/step-0000004").glob("ema*")))


def same_weights(run, other):
    ours, theirs = weights_of(run), weights_of(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_a_resumed_run_of_own_code_is_one_that_never_stopped(run, tmp_path):
    resumed = shutil.copytree(run, tmp_path / "resumed", symlinks=True)
    shutil.rmtree(resumed / "checkpoints/step-0000004")
    assert main(f"train --resume {resumed}".split()) == 0
    assert same_weights(resumed, run)
    card = ModelCard.read(run)
    assert (card.network.model, card.config.data) == ("ownnet:Net", "ownset:Squares")
    assert (card.classes, card.class_counts) == (["dark", "light"], [20, 20])


@pytest.mark.parametrize(
    "command",
    [
        "sample --run RUN --classes dark --per-class 2 --steps 2",
        "evaluate --run RUN --num-samples 8 --steps 2 --extractor colour-cnn --bootstrap 0",
        "info RUN",
        "show forward RUN --num-images 2 --times 2",
        "show backward RUN --num-images 2 --times 2 --steps 2",
        "nll --run RUN --num-images 2 --steps 2",
        pytest.param(
            "sweep --run RUN --num-samples 8 --cfg-scale 1 --steps 2 --extractor colour-cnn",
            marks=pytest.mark.slow,  # for its charts
        ),
        "encode --data ownset:Squares --vae identity --image-size 8 --out latents",
        "stats --data ownset:Squares --image-size 8 --extractor colour-cnn --out stats.npz",
    ],
)
def test_every_command_takes_a_run_of_own_code(run, command, capsys):
    assert main(command.replace("RUN", str(run)).split()) == 0, capsys.readouterr().err


def test_the_dry_run_counts_them(modules, capsys):
    assert main(f"train {SHORT} --dry-run --gpus 8".split()) == 0
    text = capsys.readouterr().out
    assert "ownnet:Net, 483 parameters; Net of ownnet" in text
    spec = NetworkSpec(
        model="ownnet:Net", input_size=8, in_channels=3, num_classes=2, learn_sigma=False
    )
    # two convolutions of 3 x 3 at 64 places, and the layer of the times
    assert count_multiply_adds(spec) == 64 * 9 * (3 * 8 + 8 * 3) + 8
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        assert build_network(spec).enter.weight.is_meta
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model ownnet:Nets", "ownnet.py has no class 'Nets' of a network"),
        ("--model nowhere:Net", "importing nowhere fails (ModuleNotFoundError"),
        (
            "--model ownnet:Wide",
            "cannot be created with input_size=8, in_channels=3, num_classes=2",
        ),
        ("--model ownnet:Late", "fails on tensors without data"),
        ("--model ownnet:Wrong", "returns [2, 1, 8, 8] for x [2, 3, 8, 8]"),
        ("--model ownnet:Empty", "--model ownnet:Empty has no parameters to train"),
        ("--model ownnet:Frozen", "--model ownnet:Frozen has no parameters to train"),
        ("--model ownnet:Short", "y goes up to the null class, 2"),
        ("--model ownnet:Net --learn-sigma --process cosine", "--learn-sigma with --model ownnet"),
        ("--model ownnet:Net --block modern", "--block modern with --model ownnet:Net"),
        ("--model ownnet:Net --conditioning tokens", "--conditioning tokens with --model ownnet"),
        ("--model ownnet:Net --route 0.5", "--route 0.5 with --model ownnet:Net"),
        ("--model ownnet:Net --inner-head", "--inner-head with --model ownnet:Net"),
        ("--model ownnet:Net --align self", "--align self with --model ownnet:Net"),
        ("--model ownnet:Net --optimizer muon", "--optimizer muon with --model ownnet:Net"),
        ("--model ownnet:Net --recompute full", "--recompute full with --model ownnet:Net"),
        ("--model ownnet:Net --objective meanflow", "--objective meanflow with --model ownnet"),
        ("--data ownset:Nothing", "ownset.py has no class 'Nothing' of a data set"),
        ("--data ownset:number", "has no class 'number' of a data set"),
        ("--data ownset:Unreadable", "image 7 of --data ownset:Unreadable cannot be read (OSError"),
        ("--data ownset:Floats", "image 0 of --data ownset:Floats is float64 [8, 8, 3]"),
        ("--data ownset:Squares --label-column a", "--label-column a with --data ownset:Squares"),
    ],
)
def test_own_code_that_does_not_fit_is_refused_by_name(modules, tmp_path, capsys, flags, message):
    assert main(f"train {SHORT} --out {tmp_path / 'run'} {flags}".split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--block-cache 2", "--block-cache 2 for a ownnet:Net"),
        ("--image-size 16", "--image-size 16 for ownnet:Net, which has no method resize"),
    ],
)
def test_sampling_refuses_what_the_network_lacks(run, flags, message, capsys):
    assert main(["sample", "--run", str(run), *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_code_that_a_card_of_the_hub_names_is_not_imported(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    copy = shutil.copytree(run, tmp_path / "hub" / "models--a--b" / "snapshots" / "c")
    link = tmp_path / "link"
    link.symlink_to(copy)
    for path in (copy, link):
        assert main(["sample", "--run", str(path), "--steps", "2"]) == 2
        assert "code that came with it or from the hub" in capsys.readouterr().err

    # a network of ours whose images were someone's own: sampled, and no data is loaded
    config = json.loads((copy / "config.json").read_text())
    config["network"]["model"] = config["config"]["model"] = "DiT-Ti/4"
    (copy / "config.json").write_text(json.dumps(config))
    assert ModelCard.read(copy).config.data == "ownset:Squares of another machine"


def test_code_that_came_with_a_run_is_not_imported(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "downloaded")
    (copy / "evil.py").write_text("raise SystemExit('it ran')")
    for file in (copy / "config.json", *copy.glob("checkpoints/*/*.safetensors")):
        # the names have one length, which the header of a weights file states
        file.write_bytes(file.read_bytes().replace(b"ownnet:Net", b"evil:Net_1"))
    monkeypatch.chdir(copy)
    with pytest.raises(dit.UserError, match="evil:Net_1, code that came with it"):
        read_header(next(copy.glob("checkpoints/*/*.safetensors")))
    assert main(["sample", "--run", ".", "--steps", "2"]) == 2
    assert "it ran" not in capsys.readouterr().err


def test_labels_are_those_of_the_items(tmp_path):
    class Shifted:
        targets = (1, 2, 3)
        target_transform = staticmethod(lambda label: label - 1)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return np.zeros((8, 8, 3), np.uint8), self.target_transform(self.targets[index])

    assert OwnImages(Shifted(), "own", 8, Columns()).labels.tolist() == [0, 1, 2]


# -- in Python -------------------------------------------------------------------------------------


def config(**changes):
    return replace(TINY, **{"steps": 4, "ckpt_every": 2, **changes})


def arrays(count=24):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return images, np.arange(count) % 3


def test_training_in_python_is_that_of_the_command(run, modules):
    trained = dit.train(
        data="ownset:Squares",
        network="ownnet:Net",
        out=modules / "python",
        vae="identity",
        image_size=8,
        steps=4,
        global_batch_size=8,
        log_every=2,
        sample_every=0,
        ckpt_every=2,
        precision="fp32",
        warmup=1,
    )
    assert trained.metrics["step"] == 4
    assert same_weights(trained.path, run)
    # the class itself, and the images as an object
    import ownnet
    import ownset

    again = dit.train(
        replace(ModelCard.read(run).config, out=modules / "objects"),
        data=ownset.Squares(),
        network=ownnet.Net,
    )
    assert same_weights(again.path, run)


def test_images_in_memory_train_and_resume(tmp_path):
    images, labels = arrays()
    once = dit.train(config(out=tmp_path / "once"), data=(images, labels))
    assert repr(once) == f"Run('{tmp_path / 'once'}', DiT-Ti/4, steps=4)"
    # as tensors, and in two parts
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    dit.train(config(out=tmp_path / "twice", steps=2), data=tensors)
    resumed = config(out=tmp_path / "twice", resume="auto")
    twice = dit.train(resumed, data=tensors)
    draw = dict(num_inference_steps=2, output_type="pt", seed=3)
    assert torch.equal(
        once.pipeline("cpu")([0, 2], **draw).images, twice.pipeline("cpu")([0, 2], **draw).images
    )
    assert once.pipeline("cpu").classes == ["0", "1", "2"]
    with pytest.raises(dit.UserError, match="were passed in Python"):
        dit.train(resumed, data="in-memory")


class Interrupting:
    """Images that send Ctrl-C when training reads the first of them."""

    def __init__(self, run):
        self.run, self.sent = run, threading.Lock()
        self.images, self.targets = arrays()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        # written before the first step; a second signal would end it at once
        if (self.run / "config.json").exists() and self.sent.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        return self.images[index], self.targets[index]


def test_after_a_signal_the_run_is_saved_and_the_script_ends(tmp_path):
    settings = config(out=tmp_path / "run", steps=500, global_batch_size=24)
    with pytest.raises(KeyboardInterrupt, match="of 500; resume='auto' with out="):
        dit.train(settings, data=Interrupting(tmp_path / "run"))
    done = max(int(path.name[5:]) for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert 0 < done < 500
    again = dit.train(replace(settings, resume="auto", steps=done + 2), data=arrays())
    assert again.metrics["step"] == done + 2


def test_a_network_that_no_name_can_build_trains_and_is_sampled(tmp_path, modules, capsys):
    import ownnet

    network = ownnet.Wide(5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = arrays(24)[0], np.arange(24) % 2
    trained = dit.train(config(out=tmp_path / "run"), data=data, network=network)
    # it was copied: the caller's stays
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    pipe = trained.pipeline("cpu")
    assert len(pipe([0, 1], num_inference_steps=2).images) == 2
    learnt = pipe.run.denoise.network.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in learnt.items())

    again = dit.train(
        config(out=tmp_path / "run", resume="auto", steps=6), data=data, network=network
    )
    assert again.metrics["step"] == 6
    assert main(["sample", "--run", str(trained.path)]) == 2
    error = capsys.readouterr().err
    assert "--model ownnet:Wide cannot be created" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(network=3), "network of type int"),
        (dict(network=torch.nn.Linear(2, 2)), "fails on x"),
        (dict(network=torch.nn.Identity()), "Identity has no parameters to train; expected"),
        (dict(data=3), "data of type int"),
        (dict(data=(np.zeros((4, 8, 8, 3)), [0] * 4)), "images float64"),
        (dict(data=(np.zeros((4, 8, 8, 3), np.uint8), [0] * 3)), "3 labels for 4 images"),
        (
            dict(stepz=3),
            "argument 'stepz'; expected a field of dit.TrainConfig; did you mean steps",
        ),
        (dict(dry_run=True), "dry_run in dit.train"),
        (dict(steps="many"), 'steps is "many"; expected a whole number'),
        (dict(steps=0), "steps=0"),
        (dict(process="flaw"), 'process is "flaw"; expected "flow"'),
        (dict(loss="velocity", min_snr_gamma=5), "loss velocity with min_snr_gamma=5"),
        (dict(data="nowhere"), "data nowhere is neither"),
    ],
)
def test_mistakes_in_python_are_errors_that_name_arguments(tmp_path, changes, message):
    given = {"data": arrays(), **changes}
    with pytest.raises(dit.UserError, match=message):
        dit.train(config(out=tmp_path / "run"), **given)


def test_a_network_of_this_package_is_named_not_passed(tmp_path):
    network = dit.create_model("DiT-Ti/4", input_size=8, in_channels=3, num_classes=3)
    with pytest.raises(dit.UserError, match="name it in the settings"):
        dit.train(config(out=tmp_path / "run"), data=arrays(), network=network)


def test_without_a_config_settings_suit_the_images():
    items = Arrays(np.zeros((4, 40, 50, 3), np.uint8))
    found = chosen_settings(None, {"data": "in-memory", "steps": 2}, items)
    assert (found.preset, found.vae, found.image_size) == ("photos", "tiny", 32)
    assert (found.steps, found.minutes) == (2, None)
    assert chosen_settings(None, {}, None) == dit.TrainConfig()


def test_labels_and_kinds_of_images_of_own_data_sets():
    class Items(list):
        pass

    gray = Image.new("L", (9, 9), 200)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    channels_first = torch.full((1, 8, 8), 7, dtype=torch.uint8)
    items = Items(
        [(gray, "b"), (clear, "a"), (channels_first, "b"), (np.zeros((8, 8), np.uint8), "b")]
    )
    images = OwnImages(items, "in-memory", 8, Columns())
    assert (images.classes, images.labels.tolist()) == (["a", "b"], [1, 0, 1, 1])
    assert [images[i].float().mean().item() for i in range(4)] == [200, 255, 7, 0]
    # the data set's own names and labels
    items.classes, items.targets = ["x", "y", "z"], torch.tensor([2, 0, 0, 1])
    images = OwnImages(items, "in-memory", 8, Columns())
    assert (images.classes, images.labels.tolist()) == (["x", "y", "z"], [2, 0, 0, 1])
    assert OwnImages(items, "in-memory", 8, Columns(classes="none")).classes == []
    items.targets = [0, 1, 2, 3]
    with pytest.raises(dit.UserError, match="class 3 of image 3 of the data"):
        OwnImages(items, "in-memory", 8, Columns())
    # images alone have no classes
    alone = OwnImages([image for image, _ in items], "in-memory", 8, Columns())
    assert (alone.classes, alone.labels.tolist()) == ([], [0] * 4)


def test_the_pipeline_of_a_run_of_own_code_samples_as_sample_py(run, tmp_path):
    pipe = dit.Pipeline.from_pretrained(run, device="cpu")
    out = pipe(["light"] * 3, num_inference_steps=2, precision="fp32")
    config = SampleConfig(
        run=run, classes=("light",), num_samples=3, steps=2, precision="fp32", out=tmp_path
    )
    found = torch.stack([torch.from_numpy(np.array(image)).int() for image in out.images])
    assert torch.equal(found, pixels(sample(config, Ranks())))
    for share in (
        lambda: pipe.push_to_hub("a/b"),
        lambda: pipe.save_pretrained("a", format="diffusers"),
    ):
        with pytest.raises(dit.UserError, match="ownnet:Net for diffusers or the hub"):
            share()


# -- what training prints --------------------------------------------------------------------------

COMMANDS_ONLY = ("--data in-memory", "--resume", "--steps", "--preset", "--batch-size", "--epochs")


def test_lines_of_a_training_in_python_name_arguments(tmp_path, capsys):
    settings = dict(vae="identity", image_size=8, model="DiT-Ti/4", out=tmp_path / "run")
    settings |= dict(sample_every=0, global_batch_size=48, warmup=0)
    for more in (dict(steps=2), dict(steps=2, resume="auto"), dict(steps=3, resume="auto")):
        dit.train(data=arrays(), **settings, **more)
    printed = "".join(capsys.readouterr())
    for line in (
        "it suits images, preset names another",
        "warning: global_batch_size=48 of 24 images",
        "pass more, such as steps=4",
        "changed     steps=2 before, steps=3 now",
        f"next        dit sample --run {tmp_path / 'run'}",
    ):
        assert line in printed
    assert not [flag for flag in COMMANDS_ONLY if flag in printed]


def test_what_needs_the_objects_of_a_script_is_no_command(tmp_path, modules, capsys):
    import ownnet

    settings = config(out=tmp_path / "run", steps=1)
    data = arrays(24)[0], np.arange(24) % 2
    dit.train(settings, data=data, network=ownnet.Wide(5))
    assert "next        run.pipeline() of the run returned" in capsys.readouterr().out

    settings = config(out=tmp_path / "stopped", steps=500, global_batch_size=24)
    with pytest.raises(KeyboardInterrupt):
        dit.train(settings, data=Interrupting(tmp_path / "stopped"))
    resume = f"continue with: the same call with resume='auto' and out='{tmp_path / 'stopped'}'"
    assert resume in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "settings", "warning"),
    [
        ([1, 2, 3], {}, "class 0 has no images: labels are counted from 0, these begin at 1"),
        ([3, 4, 4], {}, "classes 0 to 2 have no images: labels are counted from 0, these begin at"),
        ([0, 1, 3], {}, "1 of 4 classes has no images: 2; what is sampled"),
        ([0, 1, 1], dict(num_classes=9), "7 of 9 classes have no images: 2, 3, 4, 5, 6, …"),
        ([0, 1, 2], {}, None),
        ([1, 1, 2], dict(num_classes=0), None),
    ],
)
def test_classes_without_images_are_told_of(tmp_path, capsys, labels, settings, warning):
    data = arrays(6)[0], np.array(labels * 2)
    dit.train(config(out=tmp_path / "run", steps=1, **settings), data=data)
    printed = capsys.readouterr().err
    assert printed.count("no images") == (warning is not None)
    assert warning is None or f"warning: {warning}" in printed
