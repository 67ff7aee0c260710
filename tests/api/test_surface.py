"""The names of `import dit`: typed, listed, and imported when they are used."""

import doctest
import inspect
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import dit
from dit.models import registry

ROOT = Path(__file__).parents[2]


def test_import_is_lazy():
    ours = "[m for m in sys.modules if m.startswith('dit')]"
    code = f"import dit, sys; print({ours}, len(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    ours, count = done.stdout.strip().rsplit(" ", 1)
    assert ours == "['dit.utils', 'dit.utils.package', 'dit']"
    # those that Python itself and its path files bring
    nothing = [sys.executable, "-c", "import importlib, sys; print(len(sys.modules))"]
    bare = subprocess.run(nothing, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(count) == int(bare.stdout) + 3


def test_every_name_is_there_and_listed():
    assert set(dit.__all__) <= set(dir(dit))
    for name in dit.__all__:
        assert getattr(dit, name)
    assert set(dit._MODULES) == set(dit.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        dit.Pipelin  # noqa: B018


def test_types_are_shipped():
    assert resources.files("dit").joinpath("py.typed").is_file()


def test_every_name_has_an_example():
    documented = [dit.Pipeline, dit.PipelineOutput, dit.Run, dit.Scores, dit.train, dit.evaluate]
    documented += [dit.list_models, dit.create_model, dit.Run.pipeline]
    documented += [getattr(dit.Pipeline, name) for name in ("from_pretrained", "__call__")]
    documented += [getattr(dit.Pipeline, name) for name in ("to", "save_pretrained", "push_to_hub")]
    for one in documented:
        assert doctest.DocTestParser().get_examples(one.__doc__), one


def test_examples_of_the_registry_run():
    assert doctest.testmod(registry).failed == 0


def test_models():
    assert dit.list_models("DiT-*/2")[:2] == ["DiT-Mi/2", "DiT-Ti/2"]
    assert "UNet-S" in dit.list_models()
    network = dit.create_model("DiT-Ti/8", num_classes=10)
    assert network.x_embedder.proj.in_channels == 4
    assert network.grid == (4, 4)
    with pytest.raises(dit.UserError, match="did you mean DiT-S/2"):
        dit.create_model("DiT-S2")
    with pytest.raises(dit.UserError, match="call the class itself"):
        dit.create_model("mynet:Net")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DiT-S/2", dict(foo=1), "argument 'foo' of create_model; expected one of input_size, in_"),
        ("DiT-S/2", dict(inputsize=8), "; did you mean input_size?"),
        ("DiT-S/2", dict(conditioning="textt"), "conditioning textt; expected one of"),
        ("DiT-S/2", dict(conditioning="text"), "conditioning='text' without text_width"),
        ("DiT-S/2", dict(text_width=8), "text_width=8; expected"),
        ("DiT-S/2", dict(input_size=33), "change model or input_size"),
        ("UNet-S", dict(interval=True), "interval=True with UNet-S; expected a DiT"),
        ("DiT-S/2", dict(unet_attention=(8,)), "unet_attention=(8,) with DiT-S/2; expected a UNet"),
        ("UNet-S", dict(unet_attention=(3,)), "unet_attention=3 with model UNet-S"),
    ],
)
def test_arguments_of_create_model_that_do_not_fit_are_user_errors(name, settings, message):
    with pytest.raises(dit.UserError, match=re.escape(message)):
        dit.create_model(name, **settings)


def test_create_model_shows_its_arguments():
    arguments = inspect.signature(dit.create_model).parameters
    assert arguments == inspect.signature(registry.create_model).parameters
