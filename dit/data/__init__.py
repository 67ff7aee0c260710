"""Images with labels, and the order in which training sees them."""
