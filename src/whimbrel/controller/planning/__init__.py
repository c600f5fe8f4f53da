"""From what users and nodes tell to handovers and migrations (`coordinated`, figure 1): monitor, planner, deployment.

    users (reports) + nodes --monitor--> Observation --plan--> Plan --timing--> moves --> records, decisions

`monitor` and `due` are pure; `loop` asks and decides, `moves` carries out, `book` keeps what a restart must find.
"""
