"""Listing folders of images: what counts, which class it has, and what the user is told."""

import json
import os

import pytest
from helpers.image_data import paint

from dit.data.image_folder import list_images
from dit.errors import UserError


def make(root, *names):
    """Write an image for each name of one, and a text for others."""
    for name in names:
        path = root / name
        if path.suffix.lower() in (".png", ".jpeg"):
            paint(path, (8, 8))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
    return root


def refused(root):
    with pytest.raises(UserError) as error:
        list_images(root)
    return str(error.value)


def test_images_lie_anywhere_below_their_class(tmp_path):
    make(tmp_path, "bird/1.png", "bird/2024/1.png", "bird/2024/05/2.png", "fish/images/7.JPEG")
    found = list_images(tmp_path)
    assert found.classes == ["bird", "fish"]
    assert found.files == [["1.png", "2024/05/2.png", "2024/1.png"], ["images/7.JPEG"]]
    assert found.paths[-1] == "fish/images/7.JPEG"
    assert found.labels == ["bird", "bird", "bird", "fish"]
    assert found.notes == []


def test_what_is_left_out_is_counted_once(tmp_path):
    make(tmp_path, "a/1.png", "a/notes.TXT", "a/deep/more.txt", "b/2.png", "list.csv", "b/README")
    (tmp_path / "hollow" / "deep").mkdir(parents=True)
    assert list_images(tmp_path).notes == [
        f"1 subfolder of {tmp_path} without images: no class (hollow)",
        f"4 files left out in {tmp_path} (2 .txt, 1 .csv, 1 without extension)",
    ]
    notes = list_images(tmp_path, used=["list.csv"]).notes
    assert notes[-1] == f"3 files left out in {tmp_path} (2 .txt, 1 without extension)"


@pytest.mark.parametrize(
    "name",
    [
        *("a/.hidden.png", ".git/x.png", "__MACOSX/a/1.png", "a/Thumbs.db", "a/._1.png"),
        *("@eaDir/1.png", "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/1.png"),
        *("$RECYCLE.BIN/$R1.png", "RECYCLER/1.png", "System Volume Information/1.png"),
        *("lost+found/1.png", ".ipynb_checkpoints/1-checkpoint.png"),
    ],
)
def test_files_of_systems_are_passed_over_in_silence(tmp_path, name):
    make(tmp_path, "a/1.png", "b/1.png", name)
    found = list_images(tmp_path)
    assert found.paths == ["a/1.png", "b/1.png"]
    assert found.notes == []


def test_a_flat_folder_has_no_classes(tmp_path):
    make(tmp_path, "2.png", "1.png", "notes/1.txt")
    found = list_images(tmp_path)
    assert (found.classes, found.files, found.labels) == ([], [["1.png", "2.png"]], [])
    assert found.notes == [f"1 file left out in {tmp_path} (1 .txt)"]


def test_a_single_subfolder_is_one_class_and_said_so(tmp_path):
    make(tmp_path, "images/1.png", "images/2.png")
    found = list_images(tmp_path)
    assert found.classes == ["images"]
    advice = f"pass {tmp_path / 'images'} for images without class"
    assert found.notes == [f"{tmp_path} has one class, images; {advice}"]


@pytest.mark.parametrize(
    ("names", "given", "do"),
    [
        (("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"), "splits train and val", "train"),
        (("Train/1.png", "test/1.png"), "splits Train and test", "Train"),
        (("set/cat/1.png", "set/dog/1.png"), "one subfolder with images, set, and", "set"),
        (("train/cat/1.png",), "there they lie in cat", "train"),
    ],
)
def test_a_folder_above_the_classes_is_refused(tmp_path, names, given, do):
    message = refused(make(tmp_path, *names))
    assert given in message
    assert f"pass {tmp_path / do}" in message


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("1.png", "cat/2.png"), "has images both directly (1.png) and in subfolders (cat/2.png)"),
        (("1.png", "a/b/2.png"), "has images both directly (1.png) and in subfolders (a/b/2.png)"),
        (("a/x.txt", "y.psd"), "has no images but 1 .psd, 1 .txt"),
        (("a/b/.hidden",), "has no images; expected image files (.jpg, .png, .webp, …)"),
    ],
)
def test_folders_that_are_no_data_are_refused(tmp_path, names, given):
    assert given in refused(make(tmp_path, *names))


def test_pipes_and_devices_are_not_images(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "b" / "linked.png").symlink_to(tmp_path / "a" / "pipe.png")
    found = list_images(tmp_path)
    assert found.paths == ["a/1.png", "b/1.png"]
    assert found.notes == [f"3 files left out in {tmp_path} (3 pipe or device)"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path / "elsewhere", "deep/2.png", "3.png")
    root = make(tmp_path / "set", "a/1.png", "a/sub/4.png", "b/1.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "linked.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "sub" / "self").symlink_to(root / "a")
    (root / "b" / "loop").symlink_to("loop")
    found = list_images(root)
    assert found.classes == ["a", "b", "c"]
    assert found.files == [["1.png", "linked.png", "sub/4.png"], ["1.png"], ["3.png", "deep/2.png"]]


def test_a_link_that_leads_nowhere_is_an_image_to_be_named_by_its_reader(tmp_path):
    make(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to("missing.png")
    assert list_images(tmp_path).paths == ["1.png", "2.png"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png")

    def forbidden(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", forbidden)
    assert f"{tmp_path} cannot be read (Permission denied)" in refused(tmp_path)


# -- what dit wrote --------------------------------------------------------------------------------

WRITTEN = {
    "a run": ["config.json", "checkpoints/step-1/meta.json"],
    "latents": ["encoding.json"],
    "samples": ["samples.json"],
    "an evaluation": ["report.json", "report.md"],
    "a sweep": ["sweep.json"],
    "an autoencoder": ["config.json", "diffusion_pytorch_model.safetensors"],
}
KEYS = ["vae", "image_size", "num_samples", "title", "scores", "protocol", "asked", "points"]


def write_output(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(dict.fromkeys(KEYS)))
    return make(folder, "grid.png", "samples/1.png").name


@pytest.mark.parametrize("root", ["classes", "flat"])
@pytest.mark.parametrize("output", WRITTEN)
def test_a_folder_that_dit_wrote_is_no_class(tmp_path, root, output):
    names = ["a/1.png", "b/1.png"] if root == "classes" else ["1.png", "2.png"]
    make(tmp_path, *names)
    write_output(tmp_path / "out", WRITTEN[output])
    found = list_images(tmp_path)
    assert found.paths == names
    assert found.notes == [f"not read, as dit wrote it: {tmp_path}/out ({output})"]


def test_a_folder_that_dit_wrote_within_a_class_is_no_part_of_it(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    write_output(tmp_path / "a" / "out", WRITTEN["samples"])
    found = list_images(tmp_path)
    assert found.paths == ["a/1.png", "b/1.png"]
    assert found.notes == [f"not read, as dit wrote it: {tmp_path}/a/out (samples)"]


def test_samples_are_images_if_asked_for_and_not_if_below(tmp_path):
    write_output(tmp_path / "x" / "out", WRITTEN["samples"])
    (tmp_path / "x" / "out" / "samples" / "1.png").unlink()
    assert list_images(tmp_path / "x" / "out").paths == ["grid.png"]
    assert f"has no images but what dit wrote: {tmp_path}/x/out (samples)" in refused(
        tmp_path / "x"
    )


def test_records_of_other_programs_do_not_matter(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "report.json").write_text("{}")
    assert list_images(tmp_path).classes == ["a", "b"]


# -- names and depth -------------------------------------------------------------------------------


def test_a_class_of_several_subfolders_is_told(tmp_path):
    make(tmp_path, "animals/cat/1.png", "animals/dog/2.png", "cars/bus/3.png", "cars/4.png")
    found = list_images(tmp_path)
    assert found.classes == ["animals", "cars"]
    assert found.notes == ["class animals has the images of animals/cat, animals/dog"]


def test_two_classes_that_look_alike_are_told(tmp_path):
    make(tmp_path, "B\u00e4r/1.png", "Ba\u0308r/1.png", "Eule/1.png")
    found = list_images(tmp_path)
    assert len(found.classes) == 3
    (note,) = found.notes
    assert note.startswith(f"2 subfolders of {tmp_path} are called B\u00e4r, in composed")
