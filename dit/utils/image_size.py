"""Sizes of images: one side, or height and width."""

Size = int | tuple[int, int]
"""Height and width; one number for both."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size  # JSON gives a list
    return height, width


def size_of(height: int, width: int) -> Size:
    """The inverse of `sides`: one number where both are equal."""
    return height if height == width else (height, width)


def format_size(size: Size) -> str:
    """As people write it: 640x480 is 640 wide."""
    height, width = sides(size)
    return f"{width}x{height}"


def describe_size(size: Size) -> str:
    """The same for messages, which must not leave in doubt which side is which."""
    height, width = sides(size)
    return f"{format_size(size)} pixels" + (" (width x height)" if height != width else "")


def size_flag(size: Size) -> str:
    """As --image-size takes it: 480 640 is 640 wide."""
    return "--image-size " + " ".join(map(str, dict.fromkeys(sides(size))))
