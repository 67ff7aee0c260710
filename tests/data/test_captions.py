import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dit.commands.encode import encode
from dit.config import EncodeConfig, TrainConfig
from dit.data.captions import DIGIT_CAPTIONS, METADATA, CaptionedFolder
from dit.data.images import Digits
from dit.data.labels import Columns
from dit.data.sources import load_images
from dit.distributed.ranks import Ranks
from dit.encoders.autoencoder import load_autoencoder
from dit.errors import UserError
from dit.latents.load import build_source
from dit.latents.shards import INDEX
from dit.latents.store import LatentStore

LINES = [
    ("b/red.png", "a red square"),
    ("green.png", "a green square"),
    ("b/blue.png", "a red square"),
]


def write_images(root, lines=LINES):
    """Images of one colour each, and their captions."""
    (root / "b").mkdir(parents=True)
    for i, (name, _) in enumerate(lines):
        Image.new("RGB", (8, 8), (80 * i, 0, 255)).save(root / name)
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in lines]
    (root / METADATA).write_text("\n".join(rows) + "\n")
    return root


def test_every_distinct_caption_is_a_class(tmp_path):
    images = CaptionedFolder(write_images(tmp_path / "data"), 8)
    assert [images.classes[label] for label in images.labels] == [text for _, text in LINES]
    assert sorted(images.classes) == ["a green square", "a red square"]
    assert [int(images[i][0, 0, 0]) for i in range(3)] == [0, 80, 160]
    assert not images.flips


def test_order_of_classes_does_not_depend_on_the_order_of_lines(tmp_path):
    forward = CaptionedFolder(write_images(tmp_path / "a"), 8)
    backward = CaptionedFolder(write_images(tmp_path / "b", LINES[::-1]), 8)
    assert forward.classes == backward.classes
    assert forward.fingerprint != backward.fingerprint


def test_fingerprint_knows_captions(tmp_path):
    other = [(name, text.replace("red", "blue")) for name, text in LINES]
    first, second = (
        write_images(tmp_path / name, lines) for name, lines in (("a", LINES), ("b", other))
    )
    assert CaptionedFolder(first, 8).fingerprint != CaptionedFolder(second, 8).fingerprint


def test_digits_are_spelled_out():
    images = load_images("digits", 8, Columns(captions=True))
    assert [images.classes[label] for label in images.labels[:3]] == ["a zero", "a one", "a two"]
    assert np.array_equal(images.labels, Digits(8).labels)
    assert len(set(DIGIT_CAPTIONS)) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: no JSON (Expecting property name"),
        ("[]", "line 2: [] is no JSON object; expected a JSON object {"),
        ('{"file_name": "green.png", "text": "gr\udcfcn"}', "line 2: no JSON (not UTF-8)"),
        ('{"file_name": "../red.png", "text": "x"}', "line 2: image '../red.png'"),
        ('{"file_name": "b/../../red.png", "text": "x"}', "line 2: image 'b/../../red.png'"),
        ('{"file_name": "/dev/red.png", "text": "x"}', "line 2: image '/dev/red.png'"),
        ('{"file_name": "green.png"}', "line 2: no text, but file_name; expected a JSON object {"),
        ('{"file_name": "none.png", "text": "x"}', "line 2: no image 'none.png'"),
        ('{"file_name": "metadata.jsonl", "text": "x"}', "line 2: no image 'metadata.jsonl'"),
        ('{"file_name": "green.png", "text": "  "}', "line 2: caption '  ' of green.png"),
        ('{"file_name": "green.png", "text": 3}', "line 2: caption 3 of green.png"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = write_images(tmp_path / "data") / METADATA
    lines = file.read_text().splitlines()
    shutil.copy(file.parent / "green.png", tmp_path / "red.png")
    file.write_text(
        "\n".join([lines[0], line, lines[2]]), encoding="utf-8", errors="surrogateescape"
    )
    with pytest.raises(UserError) as caught:
        CaptionedFolder(file.parent, 8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_captions_and_empty_ones_are_refused(tmp_path):
    file = write_images(tmp_path / "data") / METADATA
    file.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        CaptionedFolder(file.parent, 8)
    file.unlink()
    with pytest.raises(UserError, match=r"no metadata\.jsonl .* drop --conditioning text"):
        load_images(str(file.parent), 8, Columns(captions=True))


def text_config(data, **settings):
    return TrainConfig(
        data=str(data),
        vae="identity",
        image_size=8,
        conditioning="text",
        text_encoder="digits",
        **settings,
    )


def encoded(data, out, captions):
    return encode(
        EncodeConfig(data=str(data), out=out, vae="identity", image_size=8, captions=captions),
        Ranks(),
    )


def test_encoded_captions_are_those_of_the_folder(tmp_path):
    data, identity = write_images(tmp_path / "data"), load_autoencoder("identity")
    online = build_source(text_config(data), identity)
    stored = build_source(text_config(encoded(data, tmp_path / "out", captions=True)), identity)
    assert stored.classes == online.classes
    assert np.array_equal(stored.labels, online.labels)
    every = np.arange(3), np.zeros(3, bool)
    np.testing.assert_allclose(stored.read(*every), online.read(*every), atol=1e-3)


def test_latents_of_classes_train_no_text_and_those_of_captions_no_classes(tmp_path):
    identity = load_autoencoder("identity")
    classes = encoded("digits", tmp_path / "classes", captions=False)
    captions = encoded("digits", tmp_path / "captions", captions=True)
    with pytest.raises(UserError, match=r"--conditioning text with .* encoded without --captions"):
        build_source(text_config(classes), identity)
    plain = TrainConfig(data=str(captions), vae="identity", image_size=8)
    with pytest.raises(
        UserError, match=r"--conditioning adaln-zero with .* encoded with --captions"
    ):
        build_source(plain, identity)
    assert (
        len(
            build_source(
                TrainConfig(data=str(captions), vae="identity", image_size=8, num_classes=0),
                identity,
            ).labels
        )
        == 1797
    )
    with pytest.raises(UserError, match="captions True"):
        encoded("digits", captions, captions=False)


def test_latents_of_earlier_versions_have_classes(tmp_path):
    out = encoded("digits", tmp_path / "out", captions=False)
    for name in (INDEX, "encoding.json"):
        values = json.loads((out / name).read_text())
        del values["captions"]
        (out / name).write_text(json.dumps(values))
    assert not LatentStore(out).captions
    encoded("digits", out, captions=False)  # is complete: nothing to refuse
