"""The radio access network as values: where users are, what they hear, when they should be handed over.

Pure: no clock, no files, no sockets. Time is always given, in seconds; chance comes from seeds that are given.
"""
