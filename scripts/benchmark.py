"""`attnlab benchmark` from a checkout:  python scripts/benchmark.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("benchmark")
