"""`attnlab collect` from a checkout:  python scripts/collect.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("collect")
