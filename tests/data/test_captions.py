import json
import shutil

import numpy as np
import pytest
from helpers.image_data import CAPTIONS, write_captioned

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


def test_every_distinct_caption_is_a_class(tmp_path):
    images = CaptionedFolder(write_captioned(tmp_path / "data"), 8)
    assert [images.classes[label] for label in images.labels] == [text for _, text in CAPTIONS]
    assert sorted(images.classes) == ["a green square", "a red square"]
    assert [int(images[i][0, 0, 0]) for i in range(3)] == [0, 80, 160]
    assert not images.flips


def test_classes_do_not_depend_on_the_order_of_lines_but_the_fingerprint_does(tmp_path):
    forward = CaptionedFolder(write_captioned(tmp_path / "a"), 8)
    backward = CaptionedFolder(write_captioned(tmp_path / "b", CAPTIONS[::-1]), 8)
    assert forward.classes == backward.classes
    assert forward.fingerprint != backward.fingerprint


def test_fingerprint_depends_on_captions(tmp_path):
    changed = [(name, text.replace("red", "blue")) for name, text in CAPTIONS]
    first = CaptionedFolder(write_captioned(tmp_path / "a"), 8)
    second = CaptionedFolder(write_captioned(tmp_path / "b", changed), 8)
    assert first.fingerprint != second.fingerprint


def test_captions_of_digits_are_their_names():
    images = load_images("digits", 8, Columns(captions=True))
    assert [images.classes[label] for label in images.labels[:3]] == ["a zero", "a one", "a two"]
    assert np.array_equal(images.labels, Digits(8).labels)
    assert len(set(DIGIT_CAPTIONS)) == 10
    assert DIGIT_CAPTIONS[8] == "an eight"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: no JSON: Expecting property name"),
        ("[]", "line 2: it is [], not an object; expected a JSON object {"),
        ('{"file_name": "green.png", "text": "gr\udcfcn"}', "line 2: byte 38 is not UTF-8"),
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
    file = write_captioned(tmp_path / "data") / METADATA
    lines = file.read_text().splitlines()
    shutil.copy(file.parent / "green.png", tmp_path / "red.png")
    text = "\n".join([lines[0], line, lines[2]])
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        CaptionedFolder(file.parent, 8)
    assert f"{file}, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_captions(tmp_path):
    file = write_captioned(tmp_path / "data") / METADATA
    file.write_text(file.read_text(), encoding="utf-8-sig")
    images = CaptionedFolder(file.parent, 8)
    assert [images.classes[label] for label in images.labels] == [text for _, text in CAPTIONS]


def test_a_replaced_image_changes_the_stamp_of_those_with_it(tmp_path):
    images = CaptionedFolder(write_captioned(tmp_path / "data"), 8)
    before = [images.stamp([i]) for i in range(3)]
    images.path(1).write_bytes(b"other")
    assert [images.stamp([i]) == before[i] for i in range(3)] == [True, False, True]
    assert images.stamp([0, 2]) != images.stamp([2, 0])


def test_missing_and_empty_captions_are_refused(tmp_path):
    file = write_captioned(tmp_path / "data") / METADATA
    file.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        CaptionedFolder(file.parent, 8)
    file.unlink()
    with pytest.raises(UserError, match=r"no metadata\.jsonl .* drop --conditioning text"):
        load_images(str(file.parent), 8, Columns(captions=True))


# -- latents with captions -------------------------------------------------------------------------


def source(data, text=False, **settings):
    if text:
        settings |= dict(conditioning="text", text_encoder="digits")
    config = TrainConfig(data=str(data), vae="identity", image_size=8, **settings)
    return build_source(config, load_autoencoder("identity"))


def encoded(data, out, captions):
    config = EncodeConfig(data=str(data), out=out, vae="identity", image_size=8, captions=captions)
    return encode(config, Ranks())


def test_encoded_captions_are_those_of_the_folder(tmp_path):
    data = write_captioned(tmp_path / "data")
    online = source(data, text=True)
    stored = source(encoded(data, tmp_path / "out", captions=True), text=True)
    assert stored.classes == online.classes
    assert np.array_equal(stored.labels, online.labels)
    every = np.arange(3), np.zeros(3, bool)
    np.testing.assert_allclose(stored.read(*every), online.read(*every), atol=1e-3)


def test_classes_can_not_train_on_captions_nor_text_on_classes(tmp_path):
    classes = encoded("digits", tmp_path / "classes", captions=False)
    captions = encoded("digits", tmp_path / "captions", captions=True)
    with pytest.raises(UserError, match=r"--conditioning text with .* encoded without --captions"):
        source(classes, text=True)
    with pytest.raises(UserError, match=r"adaln-zero with .* encoded with --captions"):
        source(captions)
    assert len(source(captions, num_classes=0).labels) == 1797
    with pytest.raises(UserError, match="captions True"):
        encoded("digits", captions, captions=False)


def test_latents_of_earlier_versions_have_classes(tmp_path):
    out = encoded("digits", tmp_path / "out", captions=False)
    for name in (INDEX, "encoding.json"):
        values = json.loads((out / name).read_text())
        del values["captions"]
        (out / name).write_text(json.dumps(values))
    assert not LatentStore(out).captions
    encoded("digits", out, captions=False)  # accepts the folder as complete
