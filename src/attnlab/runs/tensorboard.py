"""TensorBoard as a mirror of metrics.jsonl and timing.jsonl."""

import json
import shutil
from pathlib import Path
from typing import Any

from attnlab.config.schema import Config


class TensorBoard:
    """Event files in <folder>/tensorboard, with the names and steps of the rows.

    Whoever continues a run writes them anew, from the rows that are replayed: event files can only
    grow, and so would keep what a killed process had written beyond its last checkpoint. Raises
    whatever writing raises.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.place = str(folder / "tensorboard")
        shutil.rmtree(self.place, ignore_errors=True)
        # purge_step: a TensorBoard that is open forgets the rows of the files that are gone
        self._writer = SummaryWriter(self.place, purge_step=0)
        content = {"configuration": cfg.model_dump(), "environment": environment}
        for name, values in content.items():
            lines = json.dumps(values, indent=1).splitlines()
            self._writer.add_text(name, "".join(f"    {line}\n" for line in lines))  # as code

    def log(self, row: dict[str, Any]) -> None:
        """Write the numbers of a row; a kill after this does not lose them."""
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()

    def finish(self, result: dict[str, Any]) -> None:
        """Write how the run ended, and close."""
        self._writer.add_text("status", result["status"])
        self._writer.close()
