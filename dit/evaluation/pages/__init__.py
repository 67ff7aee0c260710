"""Reports for people: pages, curves, contact sheets."""
