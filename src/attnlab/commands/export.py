"""Export a trained model as a folder that attnlab.load and transformers read:

attnlab export run=<folder> out=<folder>
attnlab export run=<folder> out=<folder> push=<hub id>
attnlab export out=<folder> push=<hub id>              uploads a folder that was exported before
"""

from pathlib import Path

from attnlab.commands.arguments import RunArgument
from attnlab.errors import BadInput


def main(run: RunArgument | None = None, *, out: Path, push: str | None = None) -> None:
    """Write the best checkpoint, its configuration, tokenizer and card; upload them if asked."""
    if run is None and push is None:
        raise BadInput("run=: missing; without it, push=<hub id> uploads the folder out=")
    from attnlab.export import write

    if run is not None:
        write.export(run.config("same"), run.path, out)
        print(f"exported: {out}", flush=True)
    if push is not None:
        print(f"uploaded: {write.push(out, push)}")
