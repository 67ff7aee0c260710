"""Monitoring of training: metrics, progress bar, trackers, previews, evaluation."""
