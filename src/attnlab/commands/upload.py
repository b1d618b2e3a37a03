"""Send Weights & Biases a run's missing rows:  attnlab upload run=<folder>.

The rows of metrics.jsonl and timing.jsonl go into the W&B run that the folder has had from its
start; rows that are there already are not sent again. mode=offline writes all rows into a new
offline run instead.
"""

import os

from attnlab.commands.arguments import RunArgument


def main(run: RunArgument, project: str | None = None, mode: str = "online") -> None:
    """Print how many rows were new, and where the run is."""
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
    from attnlab.errors import BadInput, first_line
    from attnlab.runs import tracking
    from attnlab.runs.files import Ledger, read_json
    from attnlab.runs.folder import RunFolder

    cfg = run.config("same")
    if mode not in ("online", "offline"):
        raise BadInput(f"mode={mode}: must be online or offline")
    with RunFolder(run.path, cfg):  # a run in progress is its own mirror
        logger = cfg.logger.model_copy(update={"project": project or cfg.logger.project})
        cfg = cfg.model_copy(update={"logger": logger})
        if mode == "online" and (why := tracking.obstacle()):
            raise BadInput(f"mode=online: {why}; mode=offline writes a run for `wandb sync`")
        ledgers = (Ledger(run.path / name) for name in ("metrics.jsonl", "timing.jsonl"))
        try:
            rows = tracking.by_step(row for ledger in ledgers for row in ledger.rows())
            mirror = tracking.Mirror(cfg, run.path, read_json(run.path / "env.json"), mode)
            new = sum([mirror.log(row) for row in rows])
            mirror.finish({"status": "unfinished"} | read_json(run.path / "result.json"))
        except Exception as error:
            raise BadInput(f"mode={mode}: {first_line(error)}") from None
    print(f"{new} of {len(rows)} rows are new: {mirror.run.url or mirror.run.dir}")
