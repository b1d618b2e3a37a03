"""`attnlab restore` from a checkout:  python scripts/restore.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("restore")
