"""Measured speed and quality."""
