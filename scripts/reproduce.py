"""`attnlab reproduce` from a checkout:  python scripts/reproduce.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("reproduce")
