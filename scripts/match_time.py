"""`attnlab match_time` from a checkout:  python scripts/match_time.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("match_time")
