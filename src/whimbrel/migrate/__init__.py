"""Strategies as compositions, the story of one migration (`run`), its other end (`receive`), and its undo."""
