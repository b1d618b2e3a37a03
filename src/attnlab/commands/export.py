"""A trained model as a folder of its own, which attnlab.load and transformers read:

attnlab export run=<folder> out=<folder>
attnlab export run=<folder> out=<folder> push=<hub id>
"""

from pathlib import Path

from attnlab.commands.arguments import Run


def main(run: Run, out: Path, push: str | None = None) -> None:
    """Write the best checkpoint, its configuration, tokenizer and card; upload them if asked."""
    from attnlab.export import write

    write.export(run.config("same"), run.path, out)
    print(f"exported: {out}")
    if push is not None:
        print(f"uploaded: {write.push(out, push)}")
