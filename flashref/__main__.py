"""`python -m flashref`: the command line."""

from flashref.cli import command

if __name__ == "__main__":
    command()
