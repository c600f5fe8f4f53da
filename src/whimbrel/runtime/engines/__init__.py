"""Containers of other engines than ours: what an engine tells of them, how it is made to take one in.

An engine is asked in its own language (its API or its commands); its files are only read. Nothing here opens a
network port or moves a page.
"""
