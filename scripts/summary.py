"""`attnlab summary` from a checkout:  python scripts/summary.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("summary")
