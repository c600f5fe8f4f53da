"""Workloads: one folder each, with the recipe of its image, its service, and a client that verifies it.

Adding one is adding a folder with `recipe.toml`, `client.py` and `README.md`. The modules here read recipes and
build images out of the distribution's packages and PyPI's: no registry of images, no daemon. Nothing here knows
of agents, labs or migrations.
"""
