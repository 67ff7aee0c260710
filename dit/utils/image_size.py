"""Sizes of images: one side, or height and width."""

Size = int | tuple[int, int]  # one side of a square, or (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    height, width = (size, size) if isinstance(size, int) else size  # JSON gives a list
    return height, width


def size_of(height: int, width: int) -> Size:
    """Return the size of these sides: one number where both are equal."""
    return height if height == width else (height, width)


def format_size(size: Size) -> str:
    """Return WIDTHxHEIGHT: 640x480 is 640 wide."""
    height, width = sides(size)
    return f"{width}x{height}"


def describe_size(size: Size) -> str:
    """Return WIDTHxHEIGHT for messages, with the order of the sides where they differ."""
    height, width = sides(size)
    order = " (width x height)" if height != width else ""
    return f"{format_size(size)} pixels{order}"


def size_flag(size: Size) -> str:
    """Return the flag of a size: --image-size 480 640 is 640 wide."""
    return "--image-size " + " ".join(map(str, dict.fromkeys(sides(size))))
