"""Steps of `scripts/setup`: what a machine needs before Whimbrel runs on it. Standard library only."""
