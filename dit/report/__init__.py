"""Every HTML page and figure: findings, pages, curves, contact sheets."""
