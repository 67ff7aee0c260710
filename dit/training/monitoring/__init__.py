"""What one watches: metrics, progress bar, trackers, previews, evaluation."""
