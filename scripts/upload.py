"""`attnlab upload` from a checkout:  python scripts/upload.py --help."""

from attnlab.commands import start

if __name__ == "__main__":
    start("upload")
