"""The message of damaged images."""

from helpers.image_data import paint

from dit.data.damage import damage_error
from dit.data.images import ImageFolder


def test_every_reason_is_told_with_its_images(tmp_path):
    for number in range(3):
        paint(tmp_path / f"{number}.png", (8, 8))
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "1.png").write_bytes(b"<html>")
    (tmp_path / "2.png").write_bytes(b"")
    given = str(damage_error(ImageFolder(tmp_path, 8), [0, 1, 2])).split("; ")[0]
    assert given == (
        f"3 of 3 images cannot be read: {tmp_path}/0.png, {tmp_path}/2.png (it is empty), "
        f"{tmp_path}/1.png (it is a web page: download it again)"
    )
