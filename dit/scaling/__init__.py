"""What a training on many GPUs needs, reckoned on one machine without any (docs/scaling.md)."""
