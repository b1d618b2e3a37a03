"""`attnlab export` from a checkout:  python scripts/export.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("export")
