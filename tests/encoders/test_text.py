import copy
import csv
import json
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Copies
from huggingface_hub import constants
from PIL import Image
from test_captions import write_images

from dit.build import build_network
from dit.commands.nll import choose, conditioned, measure, nll, open_data
from dit.commands.sample import sample
from dit.config import NllConfig, SampleConfig, SamplerConfig, TrainConfig
from dit.data.captions import DIGIT_CAPTIONS
from dit.diffusion.guidance import cfg
from dit.distributed.ranks import Ranks
from dit.encoders import text
from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.text import BUNDLED, Captions, load_text_encoder, write_digits_encoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.dit import SIZES
from dit.runs.card import ModelCard, NetworkSpec
from dit.runs.weights import read_weights, write_weights
from dit.sampling.generate import generate
from dit.sampling.load import class_ids, load_run, prompted
from dit.sampling.pipeline import build_pipeline
from dit.training.finetune import initialise
from dit.training.prepare import build_card
from dit.training.trainer import train

pytestmark = pytest.mark.usefixtures("small_networks")
TEXTS = ["a red square", "green", "a square that is very red and not green at all", ""]
LENGTH = 7


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def tokenizer():
    """Of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", *sorted(set(" ".join(TEXTS).split()) - {"very"})]
    tokens = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=LENGTH,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
    )


def network(kind):
    """A tiny one with random weights."""
    import transformers as hf

    torch.manual_seed(1)
    sizes = dict(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    clip = dict(**sizes, max_position_embeddings=LENGTH, eos_token_id=2, bos_token_id=2)
    eyes = dict(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=8,
    )
    makers = {
        "clip text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**clip)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=clip, vision_config=eyes)),
        "t5": lambda: hf.T5EncoderModel(
            hf.T5Config(
                vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0
            )
        ),
        "bert": lambda: hf.BertModel(hf.BertConfig(**sizes, max_position_embeddings=LENGTH)),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**eyes)),
    }
    return makers[kind]().eval()


def write_encoder(folder, kind="clip text"):
    """A folder as it lies on the hub."""
    network(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def digits_encoder():
    return load_text_encoder("digits")


# -- the encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip text", "clip", "t5", "bert"])
def test_embeddings_are_those_of_transformers(tmp_path, kind):
    found = load_text_encoder(str(write_encoder(tmp_path, kind)))
    tokens = tokenizer()(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask, model = tokens.input_ids, tokens.attention_mask, network(kind)
    with torch.no_grad():
        if kind.startswith("clip"):  # as Stable Diffusion: padded places count
            expected = getattr(model, "text_model", model)(input_ids=ids).last_hidden_state
        else:  # each text on its own, without padding
            expected = torch.zeros(len(TEXTS), LENGTH, 8)
            for row, m, i in zip(expected, mask, ids, strict=True):
                row[: m.sum()] = model(input_ids=i[None, : m.sum()]).last_hidden_state[0]
    torch.testing.assert_close(found.encode(TEXTS), expected, atol=1e-5, rtol=0)
    assert (found.length, found.width) == (LENGTH, 8)


@pytest.mark.portable
def test_bundled_is_small_and_made_by_its_command(tmp_path, digits_encoder):
    write_digits_encoder(tmp_path)
    again, bundled = (
        load_text_encoder(str(tmp_path)).network.state_dict(),
        digits_encoder.network.state_dict(),
    )
    assert again.keys() == bundled.keys()
    for name, values in bundled.items():
        # drawn by logarithms and cosines, in whose last bits processors differ: a few eps of float32
        assert (again[name] - values).abs().max() <= 16 * 2**-23 * values.abs().max(), name
    weights = "model.safetensors"
    (tmp_path / weights).write_bytes((BUNDLED / weights).read_bytes())
    assert (
        load_text_encoder(str(tmp_path)).checksum == digits_encoder.checksum
    )  # of words and rules too
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 500e3


def test_bundled_tells_digits_apart(digits_encoder):
    found = digits_encoder.encode([*DIGIT_CAPTIONS, "", "A SEVEN", "a handwritten seven"])
    distance = torch.cdist(found.flatten(1), found.flatten(1))
    assert (
        distance[:11, :11][~torch.eye(11, dtype=torch.bool)].min() > 0.3 * distance[:11, :11].max()
    )
    assert distance[11, 7] == 0
    assert distance[12].argsort()[1] in (7, 11)  # an unknown word leaves it a seven


def test_checksum_knows_weights_words_and_rules(tmp_path, folder):
    first, again = (
        load_text_encoder(str(folder)),
        load_text_encoder(str(write_encoder(tmp_path / "again"))),
    )
    assert first.checksum == again.checksum
    file = tmp_path / "again" / "tokenizer.json"
    written = file.read_text()
    rules = {
        "normalizer": {"type": "Lowercase"},
        "post_processor": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    changed = [
        written.replace('"green"', '"brown"'),
        *(json.dumps({**json.loads(written), name: rule}) for name, rule in rules.items()),
    ]
    for content in changed:
        file.write_text(content)
        assert load_text_encoder(str(tmp_path / "again")).checksum != first.checksum
    file.write_text(
        json.dumps(
            {
                **json.loads(written),
                "truncation": {
                    "direction": "Right",
                    "max_length": 3,
                    "strategy": "LongestFirst",
                    "stride": 0,
                },
            }
        )
    )  # is set by each call
    assert load_text_encoder(str(tmp_path / "again")).checksum == first.checksum


def test_neither_autocast_nor_inference_mode_reaches_the_embeddings(digits_encoder):
    plain = digits_encoder.encode(TEXTS)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = digits_encoder.encode(TEXTS)
    assert torch.equal(plain, inside)
    assert not inside.is_inference()


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--text-encoder \./none is not a folder"):
        load_text_encoder("./none")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_text_encoder(str(tmp_path))
    weights = write_encoder(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="can not be used"):
        load_text_encoder(str(tmp_path))
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled \.bin weights are not read"):
        load_text_encoder(str(tmp_path))


def test_missing_weights_are_never_left_random(tmp_path):
    from safetensors.torch import load_file, save_file

    file = write_encoder(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "token_embedding" in name))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, as .*token_embedding"):
        load_text_encoder(str(tmp_path))


def test_what_reads_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="can not be used"):
        load_text_encoder(str(write_encoder(tmp_path, "vit")))


def test_offline_hub_says_where_to_put_the_files(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_text_encoder("nobody/no-such-encoder")
    for part in (
        "--text-encoder nobody/no-such-encoder",
        "--text-encoder FOLDER",
        "HF_HOME",
        "model.safetensors",
    ):
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# -- captions by their ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [2**26, 0])
def test_ids_stand_for_captions_and_those_beyond_for_the_null(digits_encoder, monkeypatch, kept):
    monkeypatch.setattr(text, "MOST_KEPT", kept)
    captions = Captions(["a one", "a two"], "a nine", digits_encoder)
    found = captions(torch.tensor([1, 0, 1, 2, 99]))
    expected = digits_encoder.encode(["a two", "a one", "a two", "a nine", "a nine"])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_few_captions_are_looked_up_on_the_device(digits_encoder, monkeypatch):
    """Of many, their ids are asked for: which of them to encode is known on the CPU alone."""
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # it knows no such device
    away = replace(digits_encoder, network=copy.deepcopy(digits_encoder.network).to("meta"))
    captions, ids = (
        Captions(DIGIT_CAPTIONS, "", away),
        torch.empty(3, dtype=torch.long, device="meta"),
    )
    captions(ids)  # encodes them all
    with Copies() as copies:
        found = captions(ids)
    assert (found.device.type, found.shape) == ("meta", (3, 8, 64))
    assert not copies.found


@pytest.mark.parametrize("kept", [2**26, 0])
def test_the_same_captions_are_encoded_once(digits_encoder, monkeypatch, kept):
    monkeypatch.setattr(text, "MOST_KEPT", kept)
    captions, calls, ids = (
        Captions(["a one", "a two"], "", digits_encoder),
        [],
        torch.tensor([0, 1]),
    )
    digits_encoder.width  # noqa: B018 - is found by encoding too
    monkeypatch.setattr(
        text.TextEncoder,
        "_encode",
        lambda self, texts: calls.append(texts) or torch.zeros(9, 8, 64),
    )
    captions(ids)
    captions(ids)
    assert len(calls) == 1


@pytest.mark.parametrize("kept", [2**26, 0])
def test_what_sampling_kept_serves_training(digits_encoder, monkeypatch, kept):
    monkeypatch.setattr(text, "MOST_KEPT", kept)
    captions, ids, linear = (
        Captions(["a one"], "", digits_encoder),
        torch.tensor([0, 1]),
        torch.nn.Linear(64, 1),
    )
    with torch.inference_mode():
        captions(ids)
    linear(captions(ids)).sum().backward()
    torch.testing.assert_close(linear.weight.grad[0], captions(ids).sum((0, 1)))


# -- runs --------------------------------------------------------------------------------------------------------


def write_text_run(root: Path, classes=DIGIT_CAPTIONS) -> Path:
    """A file of weights of an untrained network that is not zero."""
    config = TrainConfig(vae="identity", image_size=8, model="DiT-Ti/4", conditioning="text")
    spec = NetworkSpec(
        model=config.model,
        input_size=8,
        in_channels=3,
        num_classes=len(classes),
        learn_sigma=False,
        conditioning="text",
        text_width=64,
    )
    card = ModelCard(
        config=config,
        network=spec,
        classes=list(classes),
        text_encoder_sha256=load_text_encoder("digits").checksum,
    )
    torch.manual_seed(0)
    network = build_network(spec)
    for name, parameter in network.named_parameters():
        if any(part in name for part in ("adaLN", "final_layer", "text_attn.proj.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    root.mkdir(parents=True, exist_ok=True)
    write_weights(root / "ema-0.999.safetensors", network.state_dict(), card, 3)
    return root / "ema-0.999.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_text_run(tmp_path_factory.mktemp("run")), torch.device("cpu"))


def pictures(run, prompts=None, negative="", ids=(0,), **settings):
    config = SamplerConfig(steps=3, precision="fp32", **settings)
    run = run if prompts is None else prompted(run, prompts, negative)
    pipeline = build_pipeline(run, config)
    return generate(pipeline, torch.tensor(ids), torch.arange(len(ids))).int()


def test_a_prompt_is_drawn_as_the_class_of_that_caption(run):
    by_class, by_prompt = (
        pictures(run, ids=(7, 3)),
        pictures(run, ["a seven", "a three"], ids=(0, 1)),
    )
    assert (by_class - by_prompt).abs().max() <= 1
    assert (by_class - pictures(run, ["a one", "a two"], ids=(0, 1))).abs().max() > 1


def test_more_prompts_than_the_data_had_captions(run):
    """Ids count the prompts: the eleventh is not the null prompt of ten captions."""
    many = pictures(run, [*DIGIT_CAPTIONS, "seven seven", "one one"], ids=(10,), cfg_scale=3.0)
    alone = pictures(run, ["seven seven"], cfg_scale=3.0)
    assert (many - alone).abs().max() <= 1


def test_guidance_from_a_prompt_to_another_is_that_of_swapped_prompts(run):
    swapped = pictures(run, ["a one"])
    assert (pictures(run, ["a seven"], "a one", cfg_scale=0.0) - swapped).abs().max() <= 1
    empty = pictures(run, ["a seven"], cfg_scale=0.0)
    assert (empty - swapped).abs().max() > 1
    assert (empty - pictures(run, [""])).abs().max() <= 1


def test_guidance_with_swapped_prompts_extrapolates_to_the_other_side(run):
    x, t, ids = (
        torch.randn(2, 3, 8, 8),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor([0, 0]),
    )
    pairs = {
        pair: prompted(run, [pair[0]], pair[1]) for pair in (("a one", "a two"), ("a two", "a one"))
    }
    forth, back = (
        cfg(r.denoise, r.denoise.process, 3.0, r.card.network.num_classes)(x, t, ids).out
        for r in pairs.values()
    )
    one, two = (r.denoise(x, t, ids).out for r in pairs.values())
    torch.testing.assert_close(forth, two + 3 * (one - two), atol=1e-4, rtol=0)
    torch.testing.assert_close(forth + back, one + two, atol=1e-4, rtol=0)


def test_captioned_is_the_network_of_embeddings(run, digits_encoder):
    captioned = run.denoise.network
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        found = captioned(x, t, torch.tensor([4, 10]))
        expected = captioned.network(x, t, digits_encoder.encode(["a four", ""]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_folder_of_prompts_records_them(run, tmp_path):
    sample(
        SampleConfig(
            run=run.weights.path,
            prompt=("a seven", "one, two"),
            negative_prompt="a one",
            cfg_scale=2.0,
            steps=2,
            num_samples=3,
            out=tmp_path / "out",
        ),
        Ranks(),
    )
    with (tmp_path / "out" / "labels.csv").open() as table:
        assert [row["class"] for row in csv.DictReader(table)] == ["a seven", "one, two", "a seven"]
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["prompts"], record["negative_prompt"]) == (["a seven", "one, two"], "a one")
    assert {"transformers", "tokenizers"} < {*record["versions"]}
    assert (record["text_encoder"], record["text_encoder_sha256"]) == (
        "digits",
        run.card.text_encoder_sha256,
    )
    with pytest.raises(UserError, match="negative_prompt"):
        sample(
            SampleConfig(
                run=run.weights.path,
                prompt=("a seven", "one, two"),
                cfg_scale=2.0,
                steps=2,
                num_samples=3,
                out=tmp_path / "out",
            ),
            Ranks(),
        )


def test_likelihood_reads_captions_that_training_had_not(run, tmp_path):
    """The bits of a caption do not depend on its id, and any caption has some."""
    lines = []
    for name, caption in (("a.png", "a seven"), ("b.png", "nine white herons")):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    config = NllConfig(run=run.weights.path, data=str(tmp_path), steps=3, precision="fp32")
    source = open_data(run, str(tmp_path))
    heard, labels = conditioned(run, source, str(tmp_path))
    assert [heard.card.class_name(i) for i in labels] == ["a seven", "nine white herons"]

    def bits(run, labels):
        return measure(run, choose(run, config), config, source, labels, np.arange(2), Ranks())

    seven, heron = bits(heard, labels)
    known, _ = bits(run, np.array([7, 7]))
    assert (seven - known).abs().max() < 1e-4
    assert (heron - bits(run, np.array([7, 7]))[1]).abs().max() > 1e-3
    told = json.loads(nll(config, Ranks()).read_text())["protocol"]
    assert {"transformers", "tokenizers"} < {*told["versions"]}


def test_grids_of_other_prompts_have_other_names(run):
    flags = dict(run=run.weights.path, per_class=1, steps=1)
    found = {
        sample(SampleConfig(prompt=prompt, **flags), Ranks())
        for prompt in (None, ("a one",), ("a two",))
    }
    assert len(found) == 3
    assert all(file.is_file() for file in found)


def test_a_prompt_for_a_run_of_classes_is_refused(tiny_run):
    for flags, name in (
        ({"prompt": ("a one",)}, "--prompt 'a one'"),
        ({"negative_prompt": "x", "cfg_scale": 2.0}, "--negative-prompt 'x'"),
    ):
        with pytest.raises(UserError, match=f"{name} for .*--conditioning adaln-zero"):
            sample(SampleConfig(run=tiny_run, **flags), Ranks())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"conditioning": "text", "data": "x"},
            "--conditioning text without --text-encoder for --data x",
        ),
        ({"text_encoder": "digits"}, "--conditioning adaln-zero with --text-encoder digits"),
        ({"conditioning": "text", "num_classes": 10}, "--conditioning text with --num-classes 10"),
        ({"conditioning": "text", "model": "UNet-S"}, "--conditioning text with --model UNet-S"),
    ],
)
def test_flags_of_training_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompt": ("a one",), "classes": "1"}, "--prompt 'a one' with --classes 1"),
        ({"prompt": ()}, "--prompt; expected captions of one word or more"),
        ({"prompt": ("a one", " ")}, "--prompt ''; expected captions of one word or more"),
        (
            {"negative_prompt": "a one"},
            "--negative-prompt 'a one' with --cfg-scale 1; expected a run with --conditioning",
        ),
        (
            {"negative_prompt": "a one", "cfg_scale": 2.0, "guide": Path("g")},
            "--negative-prompt 'a one' with --guide g",
        ),
    ],
)
def test_flags_of_sampling_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        SampleConfig(run=Path("run"), **flags)


# -- training ----------------------------------------------------------------------------------------------------


def settings(tmp_path, folder, **flags):
    data = tmp_path / "data"
    if not data.exists():
        write_images(data)
    return TrainConfig(
        **dict(
            data=str(data),
            conditioning="text",
            text_encoder=str(folder),
            vae="identity",
            image_size=8,
            model="DiT-Ti/4",
            global_batch_size=2,
            steps=2,
            warmup=1,
            cooldown=0.0,
            ckpt_every=0,
            sample_every=2,
            log_every=1,
            precision="fp32",
            ema=0.5,
        )
        | flags
    )


def test_training_goes_on_as_if_never_stopped_and_draws_prompts(tmp_path, folder):
    whole = train(settings(tmp_path, folder, out=tmp_path / "whole"), Ranks())
    parts = train(
        settings(tmp_path, folder, out=tmp_path / "parts", steps=1, sample_every=0), Ranks()
    )
    moved = write_encoder(tmp_path / "moved")  # the same encoder in another place
    train(settings(tmp_path, moved, resume=str(parts), out=parts, sample_every=0), Ranks())
    first, second = (load_run(path, torch.device("cpu")) for path in (whole, parts))
    for name, tensor in first.weights.state_dict.items():
        assert torch.equal(tensor, second.weights.state_dict[name]), name
    assert any("text_attn" in name for name in first.weights.state_dict)
    assert set(first.card.classes) == {"a green square", "a red square"}
    assert (first.card.network.num_classes, first.card.network.text_width) == (2, 8)
    grid = sample(
        SampleConfig(run=whole, prompt=("a red square", "green"), per_class=2, steps=2), Ranks()
    )
    assert grid.is_file()
    assert (whole / "samples" / "step-0000002.png").is_file()


def test_an_encoder_is_found_from_anywhere_and_told_of_where_it_is_not(
    tmp_path, folder, monkeypatch
):
    encoder = write_encoder(tmp_path / "encoder")
    asked = settings(tmp_path, "encoder", steps=1, out=tmp_path / "run", sample_every=0)
    monkeypatch.chdir(tmp_path)
    run = train(asked, Ranks())
    monkeypatch.chdir("/")
    cpu = torch.device("cpu")
    assert load_run(run, cpu).card.config.text_encoder == str(encoder)
    encoder.rename(tmp_path / "moved")
    with pytest.raises(UserError) as error:
        load_run(run, cpu)
    assert f"--text-encoder {encoder} is not a folder" in str(error.value)
    assert f"(ln -s NOW {encoder})" in str(error.value)
    encoder.symlink_to(tmp_path / "moved")
    assert load_run(run, cpu).card.classes


def test_another_encoder_is_refused(tmp_path, folder):
    own = write_encoder(tmp_path / "encoder")
    run = train(settings(tmp_path, own, steps=1, out=tmp_path / "run", sample_every=0), Ranks())
    torch.manual_seed(5)
    changed = network("clip text")
    torch.nn.init.normal_(next(changed.parameters()))
    changed.save_pretrained(own)
    with pytest.raises(
        UserError, match=r"--text-encoder .* with SHA-256 .* the one that the run was trained with"
    ):
        load_run(run, torch.device("cpu"))
    with pytest.raises(UserError, match="text_encoder_sha256"):
        train(settings(tmp_path, own, out=run, resume=str(run)), Ranks())


def test_init_takes_other_captions_but_no_other_encoder(tmp_path, folder):
    config = TrainConfig(vae="identity", image_size=8, model="DiT-Ti/4", conditioning="text")
    weights = write_text_run(tmp_path / "old")
    spec, encoder = read_weights(weights).card.network, load_text_encoder("digits")
    card = ModelCard(
        config=config,
        network=replace(spec, num_classes=3),
        classes=["x", "y", "z"],
        text_encoder_sha256=encoder.checksum,
    )
    fresh = build_network(card.network)
    initialise(fresh, card, weights)
    for name, tensor in read_weights(weights).state_dict.items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    with pytest.raises(
        UserError, match=r"--init .* --text-encoder digits, which is not --text-encoder other"
    ):
        initialise(
            fresh,
            replace(card, config=replace(config, text_encoder="other"), text_encoder_sha256="1"),
            weights,
        )


def test_what_blocks_remember_is_of_one_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALL | dict(depth=3))  # one block in the middle
    run = load_run(write_text_run(tmp_path), torch.device("cpu"))
    alone, together = (pictures(run, ids=(0, 1), block_cache=2, batch_size=size) for size in (1, 2))
    assert (alone - together).abs().max() <= 1
    assert not torch.equal(together, pictures(run, ids=(0, 1)))


def test_a_guide_hears_the_same_prompts(run, tmp_path):
    same = write_text_run(
        tmp_path / "guide", DIGIT_CAPTIONS[::-1]
    )  # whose own ids say something else
    config = dict(guide=same, cfg_scale=2.0)
    assert (pictures(run, ["a seven"], **config) - pictures(run, ["a seven"])).abs().max() <= 1


def test_a_guide_that_hears_something_else_is_refused(run, tiny_run):
    """Whichever of the two it is that hears captions."""
    classes = load_run(tiny_run, torch.device("cpu"))
    pairs = (
        (classes, run.weights.path, "captions, .* has classes"),
        (run, tiny_run, "classes, .* has captions"),
    )
    for ours, theirs, said in pairs:
        with pytest.raises(
            UserError, match=f"--guide {theirs} has conditions that are {said}; expected the same"
        ):
            pictures(ours, guide=theirs, cfg_scale=2.0)


def test_a_run_remembers_at_most_so_many_captions(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("dit.training.prepare.MOST_CAPTIONS", 1)
    config = settings(tmp_path, folder)
    encoder = load_text_encoder(str(folder))
    card = build_card(config, build_source(config, load_autoencoder("identity")), encoder)
    assert (len(card.classes), card.network.num_classes) == (1, 2)
    write_weights(tmp_path / "w.safetensors", build_network(card.network).state_dict(), card, 0)
    run = load_run(tmp_path / "w.safetensors", torch.device("cpu"))
    assert run.card.network.num_classes == 1
    null = run.denoise.network.captions(torch.tensor([1]))
    torch.testing.assert_close(null, encoder.encode([""]), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="--classes 1"):
        class_ids("1", run.card)


@pytest.mark.slow
def test_a_network_of_text_draws_the_digits_that_it_is_asked_for(tmp_path):
    from dit.commands.evaluate import evaluate
    from dit.config import EvalConfig

    run = train(TrainConfig(conditioning="text", out=tmp_path / "run", sample_every=0), Ranks())
    out = evaluate(
        EvalConfig(run=run, num_samples=500, cfg_scale=1.5, bootstrap=0, out=tmp_path / "report"),
        Ranks(),
    )
    report = json.loads((out / "report.json").read_text())
    assert report["digits_recognised"]["found"]["accuracy"] > 0.9
