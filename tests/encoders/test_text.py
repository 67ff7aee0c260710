import copy
import csv
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Copies
from helpers.caption_runs import write_text_run
from helpers.image_data import write_captioned
from huggingface_hub import constants
from PIL import Image

from dit.api.pipeline import Pipeline
from dit.build import build_network
from dit.commands.nll import make_plan, match_classes, measure, nll, open_data
from dit.commands.sample import sample
from dit.commands.train import train
from dit.config import NllConfig, SampleConfig, SamplerConfig, TrainConfig
from dit.data.captions import DIGIT_CAPTIONS
from dit.diffusion.guidance import cfg
from dit.distributed.ranks import Ranks
from dit.encoders import text
from dit.encoders.autoencoder import load_autoencoder
from dit.encoders.text import BUNDLED, Captions, load_text_encoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.models.sizes import SIZES
from dit.runs.card import ModelCard
from dit.runs.weights import read_weights, write_weights
from dit.sampling.classes import class_ids
from dit.sampling.generate import generate
from dit.sampling.load import load_run, with_prompts
from dit.sampling.pipeline import build_pipeline
from dit.training.build_card import build_card
from dit.training.finetune import initialise

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from write_digits_text_encoder import write_digits_encoder

pytestmark = pytest.mark.usefixtures("small_networks")
TEXTS = ["a red square", "green", "a square that is very red and not green at all", ""]
LENGTH = 7


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def tokenizer():
    """Return a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", *sorted(set(" ".join(TEXTS).split()) - {"very"})]
    ids = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
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
    """Return a tiny network with random weights."""
    import transformers as hf

    torch.manual_seed(1)
    common = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2)
    words = dict(vocab_size=16, pad_token_id=0)
    bert = dict(**common, **words, max_position_embeddings=LENGTH)
    clip = dict(**bert, eos_token_id=2, bos_token_id=2)
    t5 = dict(**words, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    vision = dict(**common, image_size=8, patch_size=8)
    create = {
        "clip text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**clip)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=clip, vision_config=vision)),
        "t5": lambda: hf.T5EncoderModel(hf.T5Config(**t5)),
        "bert": lambda: hf.BertModel(hf.BertConfig(**bert)),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**vision)),
    }
    return create[kind]().eval()


def write_encoder(folder, kind="clip text"):
    """Write an encoder as a folder of the hub."""
    network(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def digits_encoder():
    return load_text_encoder("digits")


# -- the encoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip text", "clip", "t5", "bert"])
def test_embeddings_are_those_of_transformers(tmp_path, kind):
    found = load_text_encoder(str(write_encoder(tmp_path, kind)))
    tokens = tokenizer()(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask, model = tokens.input_ids, tokens.attention_mask, network(kind)
    with torch.no_grad():
        if kind.startswith("clip"):  # as Stable Diffusion: padding is encoded
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
        # drawn by logarithms and cosines, whose last bits differ by processor: a few eps of float32
        assert (again[name] - values).abs().max() <= 16 * 2**-23 * values.abs().max(), name
    weights = "model.safetensors"
    (tmp_path / weights).write_bytes((BUNDLED / weights).read_bytes())
    assert (
        load_text_encoder(str(tmp_path)).checksum == digits_encoder.checksum
    )  # of words and rules too
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 500e3


def test_bundled_embeddings_of_digits_differ(digits_encoder):
    embeddings = digits_encoder.encode([*DIGIT_CAPTIONS, "", "A SEVEN", "a handwritten seven"])
    distance = torch.cdist(embeddings.flatten(1), embeddings.flatten(1))
    captions = distance[:11, :11]
    assert captions[~torch.eye(11, dtype=torch.bool)].min() > 0.3 * captions.max()
    assert distance[11, 7] == 0
    assert distance[12].argsort()[1] in (7, 11)  # an unknown word changes little


def test_checksum_covers_vocabulary_and_rules_but_not_truncation(tmp_path, folder):
    first = load_text_encoder(str(folder)).checksum
    file = write_encoder(tmp_path) / "tokenizer.json"
    assert load_text_encoder(str(tmp_path)).checksum == first
    written = file.read_text()

    def checksum(content):
        file.write_text(content)
        return load_text_encoder(str(tmp_path)).checksum

    rules = {
        "normalizer": {"type": "Lowercase"},
        "post_processor": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    assert checksum(written.replace('"green"', '"brown"')) != first
    for name, rule in rules.items():
        assert checksum(json.dumps({**json.loads(written), name: rule})) != first
    truncation = dict(direction="Right", max_length=3, strategy="LongestFirst", stride=0)
    assert checksum(json.dumps({**json.loads(written), "truncation": truncation})) == first


def test_embeddings_do_not_depend_on_autocast_or_inference_mode(digits_encoder):
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
    with pytest.raises(UserError, match="cannot be used"):
        load_text_encoder(str(tmp_path))
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled \.bin weights are not read"):
        load_text_encoder(str(tmp_path))


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    file = write_encoder(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "token_embedding" in name))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, as .*token_embedding"):
        load_text_encoder(str(tmp_path))


def test_a_network_of_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be used"):
        load_text_encoder(str(write_encoder(tmp_path, "vit")))


def test_an_unreachable_hub_names_the_files_to_copy(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_text_encoder("nobody/no-such-encoder")
    message = str(error.value)
    flag = "--text-encoder"
    for part in (
        f"{flag} nobody/no-such-encoder",
        f"{flag} FOLDER",
        "HF_HOME",
        "model.safetensors",
    ):
        assert part in message
    assert len(message.splitlines()) == 1


# -- captions by their ids -------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [2**26, 0])
def test_ids_are_captions_and_larger_ones_the_null_caption(digits_encoder, monkeypatch, cached):
    monkeypatch.setattr(text, "MAX_CACHED", cached)
    captions = Captions(["a one", "a two"], "a nine", digits_encoder)
    embeddings = captions(torch.tensor([1, 0, 1, 2, 99]))
    expected = digits_encoder.encode(["a two", "a one", "a two", "a nine", "a nine"])
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)


def test_few_captions_are_looked_up_on_the_device(digits_encoder, monkeypatch):
    # the meta device has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    away = replace(digits_encoder, network=copy.deepcopy(digits_encoder.network).to("meta"))
    captions = Captions(DIGIT_CAPTIONS, "", away)
    ids = torch.empty(3, dtype=torch.long, device="meta")
    captions(ids)  # encodes them all
    with Copies() as copies:
        found = captions(ids)
    assert (found.device.type, found.shape) == ("meta", (3, 8, 64))
    assert not copies.found


@pytest.mark.parametrize("cached", [2**26, 0])
def test_the_same_captions_are_encoded_once(digits_encoder, monkeypatch, cached):
    monkeypatch.setattr(text, "MAX_CACHED", cached)
    captions = Captions(["a one", "a two"], "", digits_encoder)
    digits_encoder.width  # noqa: B018 - encodes a text too
    calls = []

    def encode(self, texts):
        calls.append(texts)
        return torch.zeros(9, 8, 64)

    monkeypatch.setattr(text.TextEncoder, "_encode", encode)
    for _ in range(2):
        captions(torch.tensor([0, 1]))
    assert len(calls) == 1


@pytest.mark.parametrize("cached", [2**26, 0])
def test_embeddings_cached_in_inference_mode_can_be_trained_on(digits_encoder, monkeypatch, cached):
    monkeypatch.setattr(text, "MAX_CACHED", cached)
    captions, ids = Captions(["a one"], "", digits_encoder), torch.tensor([0, 1])
    linear = torch.nn.Linear(64, 1)
    with torch.inference_mode():
        captions(ids)
    linear(captions(ids)).sum().backward()
    torch.testing.assert_close(linear.weight.grad[0], captions(ids).sum((0, 1)))


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(write_text_run(tmp_path_factory.mktemp("run")), torch.device("cpu"))


def images_of(run, prompts=None, negative="", ids=(0,), **settings):
    config = SamplerConfig(steps=3, precision="fp32", **settings)
    run = run if prompts is None else with_prompts(run, prompts, negative)
    pipeline = build_pipeline(run, config)
    return generate(pipeline, torch.tensor(ids), torch.arange(len(ids))).int()


def test_a_prompt_gives_the_images_of_the_class_with_that_caption(run):
    by_class = images_of(run, ids=(7, 3))
    by_prompt = images_of(run, ["a seven", "a three"], ids=(0, 1))
    assert (by_class - by_prompt).abs().max() <= 1
    assert (by_class - images_of(run, ["a one", "a two"], ids=(0, 1))).abs().max() > 1


def test_there_may_be_more_prompts_than_captions(run):
    # ids are of prompts: the eleventh is not the null prompt of ten captions
    many = images_of(run, [*DIGIT_CAPTIONS, "seven seven", "one one"], ids=(10,), cfg_scale=3.0)
    alone = images_of(run, ["seven seven"], cfg_scale=3.0)
    assert (many - alone).abs().max() <= 1


def test_guidance_from_a_prompt_to_another_is_that_of_swapped_prompts(run):
    swapped = images_of(run, ["a one"])
    assert (images_of(run, ["a seven"], "a one", cfg_scale=0.0) - swapped).abs().max() <= 1
    empty = images_of(run, ["a seven"], cfg_scale=0.0)
    assert (empty - swapped).abs().max() > 1
    assert (empty - images_of(run, [""])).abs().max() <= 1


def test_guidance_with_swapped_prompts_extrapolates_both_ways(run):
    x, ids = torch.randn(2, 3, 8, 8), torch.tensor([0, 0])
    t = torch.tensor(0.5, dtype=torch.float64)
    runs = with_prompts(run, ["a one"], "a two"), with_prompts(run, ["a two"], "a one")

    def guided(r):
        return cfg(r.denoise, r.denoise.process, 3.0, r.card.network.num_classes)(x, t, ids).out

    forth, back = map(guided, runs)
    one, two = (r.denoise(x, t, ids).out for r in runs)
    torch.testing.assert_close(forth, two + 3 * (one - two), atol=1e-4, rtol=0)
    torch.testing.assert_close(forth + back, one + two, atol=1e-4, rtol=0)


def test_captioned_is_the_network_of_embeddings(run, digits_encoder):
    captioned = run.denoise.network
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        found = captioned(x, t, torch.tensor([4, 10]))
        expected = captioned.network(x, t, digits_encoder.encode(["a four", ""]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_folder_of_samples_records_the_prompts(run, tmp_path):
    config = SampleConfig(
        run=run.weights.path,
        prompt=("a seven", "one, two"),
        negative_prompt="a one",
        cfg_scale=2.0,
        steps=2,
        num_samples=3,
        out=tmp_path / "out",
    )
    sample(config, Ranks())
    with (tmp_path / "out" / "labels.csv").open() as table:
        assert [row["class"] for row in csv.DictReader(table)] == ["a seven", "one, two", "a seven"]
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["prompts"], record["negative_prompt"]) == (["a seven", "one, two"], "a one")
    assert {"transformers", "tokenizers"} < {*record["versions"]}
    assert record["text_encoder"] == "digits"
    assert record["text_encoder_sha256"] == run.card.text_encoder_sha256
    with pytest.raises(UserError, match="--negative-prompt"):
        sample(replace(config, negative_prompt=""), Ranks())


def test_the_pipeline_in_python_takes_prompts_from_threads(run, tmp_path):
    pipe = Pipeline(run)
    settings = dict(guidance_scale=2.0, num_inference_steps=2, num_images=3, precision="fp32")
    calls = [(["a seven", "one, two"], "a one"), (["a two"], ""), ([4, 9], "")]
    with ThreadPoolExecutor(3) as pool:
        outputs = pool.map(lambda one: pipe(one[0], negative_prompt=one[1], **settings), calls)
        images = [as_pixels(output.images) for output in outputs]
    for i, (classes, negative) in enumerate(calls):
        prompts = all(isinstance(one, str) for one in classes)
        chosen = {"prompt": tuple(classes), "negative_prompt": negative}
        if not prompts:
            chosen = {"classes": tuple(map(str, classes))}
        config = SampleConfig(run=run.weights.path, cfg_scale=2.0, steps=2, num_samples=3, **chosen)
        folder = sample(replace(config, precision="fp32", out=tmp_path / str(i)), Ranks())
        expected = as_pixels(Image.open(file) for file in sorted(folder.glob("*.png")))
        assert np.array_equal(images[i], expected)
    with pytest.raises(UserError, match="prompts and ids in one call"):
        pipe(["a seven", 3])


def as_pixels(images):
    return np.stack([np.array(image) for image in images])


def test_nll_accepts_captions_unknown_in_training(run, tmp_path):
    # the bits of a caption do not depend on its id
    lines = []
    for name, caption in (("a.png", "a seven"), ("b.png", "nine white herons")):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    config = NllConfig(run=run.weights.path, data=str(tmp_path), steps=3, precision="fp32")
    source = open_data(run, str(tmp_path))
    with_captions, labels = match_classes(run, source, str(tmp_path))
    assert [with_captions.card.class_name(i) for i in labels] == ["a seven", "nine white herons"]

    def bits(run, labels):
        return measure(run, make_plan(run, config), config, source, labels, np.arange(2), Ranks())

    seven, heron = bits(with_captions, labels)
    known, _ = bits(run, np.array([7, 7]))
    assert (seven - known).abs().max() < 1e-4
    assert (heron - bits(run, np.array([7, 7]))[1]).abs().max() > 1e-3
    protocol = json.loads(nll(config, Ranks()).read_text())["protocol"]
    assert {"transformers", "tokenizers"} < {*protocol["versions"]}


def test_grids_of_other_prompts_have_other_names(run):
    flags = dict(run=run.weights.path, per_class=1, steps=1)
    prompts = (None, ("a one",), ("a two",))
    files = {sample(SampleConfig(prompt=prompt, **flags), Ranks()) for prompt in prompts}
    assert len(files) == 3
    assert all(file.is_file() for file in files)


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
        ({"conditioning": "text", "data": "x"}, "text without --text-encoder for --data x"),
        ({"text_encoder": "digits"}, "--conditioning adaln-zero with --text-encoder digits"),
        ({"conditioning": "text", "num_classes": 10}, "--conditioning text with --num-classes 10"),
        ({"conditioning": "text", "model": "UNet-S"}, "--conditioning text with --model UNet-S"),
    ],
)
def test_training_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompt": ("a one",), "classes": "1"}, "--prompt 'a one' with --classes 1"),
        ({"prompt": ()}, "--prompt; expected captions of one word or more"),
        ({"prompt": ("a one", " ")}, "--prompt ''; expected captions of one word or more"),
        (
            {"negative_prompt": "x"},
            "--negative-prompt 'x' with --cfg-scale 1; expected a run with --conditioning",
        ),
        (
            {"negative_prompt": "x", "cfg_scale": 2.0, "guide": Path("g")},
            "--negative-prompt 'x' with --guide g",
        ),
    ],
)
def test_sampling_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        SampleConfig(run=Path("run"), **flags)


# -- training --------------------------------------------------------------------------------------


def settings(tmp_path, folder, **changes):
    data = tmp_path / "data"
    if not data.exists():
        write_captioned(data)
    model = dict(conditioning="text", text_encoder=str(folder), vae="identity", model="DiT-Ti/4")
    steps = dict(global_batch_size=2, steps=2, warmup=1, cooldown=0.0, ckpt_every=0, log_every=1)
    run = dict(data=str(data), image_size=8, precision="fp32", ema=0.5, sample_every=0)
    return TrainConfig(**model | steps | run | changes)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, folder):
    whole = train(settings(tmp_path, folder, out=tmp_path / "whole", sample_every=2), Ranks())
    parts = train(settings(tmp_path, folder, out=tmp_path / "parts", steps=1), Ranks())
    moved = write_encoder(tmp_path / "moved")  # the same encoder in another folder
    train(settings(tmp_path, moved, resume=str(parts), out=parts), Ranks())
    first, second = (load_run(path, torch.device("cpu")) for path in (whole, parts))
    for name, tensor in first.weights.state_dict.items():
        assert torch.equal(tensor, second.weights.state_dict[name]), name
    assert any("text_attn" in name for name in first.weights.state_dict)
    assert set(first.card.classes) == {"a green square", "a red square"}
    assert (first.card.network.num_classes, first.card.network.text_width) == (2, 8)
    prompts = SampleConfig(run=whole, prompt=("a red square", "green"), per_class=2, steps=2)
    assert sample(prompts, Ranks()).is_file()
    assert (whole / "samples" / "step-0000002.png").is_file()


def test_a_run_records_the_absolute_path_of_its_encoder(tmp_path, monkeypatch):
    encoder = write_encoder(tmp_path / "encoder")
    config = settings(tmp_path, "encoder", steps=1, out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run = train(config, Ranks())
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


def test_another_encoder_is_refused(tmp_path):
    own = write_encoder(tmp_path / "encoder")
    run = train(settings(tmp_path, own, steps=1, out=tmp_path / "run"), Ranks())
    torch.manual_seed(5)
    changed = network("clip text")
    torch.nn.init.normal_(next(changed.parameters()))
    changed.save_pretrained(own)
    message = r"--text-encoder .* with SHA-256 .* the one that the run was trained with"
    with pytest.raises(UserError, match=message):
        load_run(run, torch.device("cpu"))
    with pytest.raises(UserError, match="text_encoder_sha256"):
        train(settings(tmp_path, own, out=run, resume=str(run)), Ranks())


def test_init_accepts_other_captions_but_no_other_encoder(tmp_path):
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
    config = replace(config, text_encoder="other")
    other = replace(card, config=config, text_encoder_sha256="1")
    message = r"--init .* --text-encoder digits, which is not --text-encoder other"
    with pytest.raises(UserError, match=message):
        initialise(fresh, other, weights)


def test_cached_blocks_are_those_of_one_batch(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "Ti", SMALL | dict(depth=3))  # one block in the middle
    run = load_run(write_text_run(tmp_path), torch.device("cpu"))
    alone, together = (
        images_of(run, ids=(0, 1), block_cache=2, batch_size=size) for size in (1, 2)
    )
    assert (alone - together).abs().max() <= 1
    assert not torch.equal(together, images_of(run, ids=(0, 1)))


def test_a_guide_gets_the_same_prompts(run, tmp_path):
    # the guide's own ids are of other captions
    same = write_text_run(tmp_path / "guide", DIGIT_CAPTIONS[::-1])
    config = dict(guide=same, cfg_scale=2.0)
    assert (images_of(run, ["a seven"], **config) - images_of(run, ["a seven"])).abs().max() <= 1


def test_a_guide_of_another_conditioning_is_refused(run, tiny_run):
    classes = load_run(tiny_run, torch.device("cpu"))
    pairs = (
        (classes, run.weights.path, "captions, .* has classes"),
        (run, tiny_run, "classes, .* has captions"),
    )
    for ours, theirs, kinds in pairs:
        message = f"--guide {theirs} has conditions that are {kinds}; expected the same"
        with pytest.raises(UserError, match=message):
            images_of(ours, guide=theirs, cfg_scale=2.0)


def test_a_run_records_a_limited_number_of_captions(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("dit.training.build_card.MAX_CAPTIONS", 1)
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
        class_ids(("1",), run.card)


@pytest.mark.slow
def test_a_text_network_samples_the_prompted_digits(tmp_path):
    from dit.commands.evaluate import evaluate
    from dit.config import EvalConfig

    run = train(TrainConfig(conditioning="text", out=tmp_path / "run", sample_every=0), Ranks())
    config = EvalConfig(
        run=run, num_samples=500, cfg_scale=1.5, bootstrap=0, out=tmp_path / "report"
    )
    out = evaluate(config, Ranks())
    report = json.loads((out / "report.json").read_text())
    assert report["digits_recognised"]["found"]["accuracy"] > 0.9
