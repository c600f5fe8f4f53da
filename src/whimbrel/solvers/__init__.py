"""Solvers that need what planning itself must not have: a clock, a library's own search, another process.

    highs     the exact problem by HiGHS (as SciPy brings it)
    cbc       the same by the program `cbc` (COIN-OR), where that is installed: the paper's own solver
    timed     an answer within a deadline, whatever happens, and how far from optimal it may be

All have the type `plan.placement.problem.Solve`, or make one.
"""
