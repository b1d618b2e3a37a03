"""`attnlab generate` from a checkout:  python scripts/generate.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("generate")
