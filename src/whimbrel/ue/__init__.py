"""A user's equipment, virtual: it moves, hears base stations, is handed over, talks to its application, and reports.

It stands for a phone, so it knows nothing of nodes, agents or migrations: whoever starts it gives it its radio.
"""
