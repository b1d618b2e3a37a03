"""`attnlab compare_arms` from a checkout:  python scripts/compare_arms.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("compare_arms")
