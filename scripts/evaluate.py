"""`attnlab evaluate` from a checkout:  python scripts/evaluate.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("evaluate")
