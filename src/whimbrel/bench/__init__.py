"""Measuring from outside: the user's client, benchmarks, tables. What is measured never imports it."""
