"""What a run has become, on one page; and the reference curves of presets."""
