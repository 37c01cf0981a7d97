"""Measurements, all side by side in one run: ratios on one machine, not absolute times."""
