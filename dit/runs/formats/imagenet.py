"""Names of ImageNet's classes, by id: released networks have the ids alone."""

CLASSES = 1000


def imagenet_names() -> list[str]:
    """Return torchvision's names of the 1000 classes; all differ."""
    # importing torchvision takes seconds
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
