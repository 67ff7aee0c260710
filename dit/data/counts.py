"""Numbers of images and classes in words."""


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, as "1 image" or "2 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def describe_count(images: int, classes: int, captions: bool = False) -> str:
    """Return how many images there are in how many classes, or with how many captions."""
    if not classes:
        return f"{count_of(images, 'image')} without classes"
    if captions:
        return f"{count_of(images, 'image')} with {count_of(classes, 'caption')}"
    return f"{count_of(images, 'image')} in {count_of(classes, 'class')}"
