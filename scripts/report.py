"""`attnlab report` from a checkout:  python scripts/report.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("report")
