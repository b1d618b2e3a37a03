"""`attnlab show_attention` from a checkout:  python scripts/show_attention.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("show_attention")
