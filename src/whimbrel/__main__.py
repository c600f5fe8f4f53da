"""`python -m whimbrel`: the same as the command `whimbrel`."""

from whimbrel.cli.main import main

if __name__ == "__main__":
    main()
