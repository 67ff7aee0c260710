"""From files to features: images, statistics, the pass through the networks, the cache."""
