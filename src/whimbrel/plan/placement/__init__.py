"""Optimal placement, (1)-(3e) of `coordinated`: from an observation to the problem, from the problem to an answer.

    problem    what each user gains and costs by each base station and server; capacities
    search     feasible answers, quickly
    lagrange   ever better answers and a proven bound, step by step: the caller decides when it is enough
    plans      from an answer to a plan; why somebody is left
    check      holds any plan against the constraints; knows nothing of the rest

Solvers that need a clock, a library or another process are in `whimbrel.solvers`; they have the same type, `Solve`.
"""
