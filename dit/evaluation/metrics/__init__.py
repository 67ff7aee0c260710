"""The arithmetic of scores, and how far to trust them."""
