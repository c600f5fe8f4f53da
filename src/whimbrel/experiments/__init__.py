"""The papers' tables and figures, measured again: ours beside theirs.

An experiment is one module of `known` that declares cells (a workload moved by a strategy), what is read out of their
records, and in which figures that is shown; the paper's numbers are data, in `papers`. Nothing here moves a container
or looks at a client by itself: that is `bench`, `lab` and the controller's client. No experiment runs code of its own.
"""
