"""The region as it is watched: one picture of it, what changes in it, and a log of what happened.

`marks` makes the picture (pure), `news` tells it to any number of listeners, `watch` hears what the controller's parts
do. Nothing here decides or changes anything in the region.
"""
