"""The command `whimbrel`: reads arguments, calls the part that does the work, shows what it answers.

Rule: nothing is decided here, and heavy parts are imported inside the command that needs them, so that help
and quick commands stay quick.
"""
