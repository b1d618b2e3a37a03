"""`attnlab translate` from a checkout:  python scripts/translate.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("translate")
