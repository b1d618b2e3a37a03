"""Rows in the hub's form, from the hub or from a local folder of the same form, read by
`datasets`.
"""

import hashlib
import logging
from functools import cached_property
from pathlib import Path

from attnlab.data.cache import file_digest
from attnlab.errors import BadInput
from attnlab.runtime.network import prepare_hub

STRINGS = ("string", "large_string")


class Rows:
    """The splits of one data set.

    path: hub id or local folder; config: the hub's configuration name; columns: those that must
    be there. Errors: `BadInput` for a missing folder, split or column, a damaged file, an
    unreachable hub.
    """

    def __init__(self, data, columns: list[str], splits: list[str], cache: Path):
        self.data, self.columns, self.splits, self.cache = data, columns, splits, cache
        self.folder = Path(data.path).expanduser()
        looks_local = data.path.startswith((".", "/", "~")) or data.path.count("/") > 1
        if looks_local and not self.folder.is_dir():
            wrong = "is a file, not a folder" if self.folder.exists() else "no such folder"
            raise BadInput(f"{self.where}: {wrong}")

    @property
    def where(self) -> str:
        """How messages name this data set."""
        return f"data.path={self.data.path}"

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the content does: a hash of the local files, or of the hub's
        revision.
        """
        if not self.folder.is_dir():
            return "|".join(self._loaded[split]._fingerprint for split in self.splits)
        total = hashlib.sha256(f"{self.data.config}\n".encode())
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                total.update(f"{file.relative_to(self.folder)} {file_digest(file)}\n".encode())
        return total.hexdigest()

    def __getitem__(self, split: str):
        """One split as a `datasets.Dataset` with all required columns, at least one row."""
        return self._loaded[split]

    @cached_property
    def _loaded(self) -> dict:
        local = self.folder.is_dir()
        if local:
            self._check_parquet()
        else:
            prepare_hub()
        import datasets  # 2 s: not for runs whose data is embedded or cached

        datasets.disable_progress_bars()
        logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its errors are raised as well
        # datasets' own cache goes by modification time; ours by content
        store = {"cache_dir": str(self.cache / f"rows-{self.fingerprint[:16]}")} if local else {}
        try:
            loaded = datasets.load_dataset(self.data.path, self.data.config, **store)
        except Exception as error:  # the hub's and arrow's errors share no base class
            raise BadInput(f"{self.where}: {self._explain(error, local)}") from None
        for split in self.splits:
            if split not in loaded:
                raise BadInput(f"{self.where}: no split {split}; it has {', '.join(loaded)}")
            missing = set(self.columns) - set(loaded[split].column_names)
            if missing:
                has = ", ".join(loaded[split].column_names)
                raise BadInput(
                    f"{self.where}: split {split} has no column {', '.join(missing)}; it has {has}"
                )
            if "text" in self.columns and loaded[split].features["text"].dtype not in STRINGS:
                found = loaded[split].features["text"]
                raise BadInput(f"{self.where}: split {split}, column text is no text but {found}")
            if not len(loaded[split]):
                raise BadInput(f"{self.where}: split {split} is empty")
        return loaded

    def _check_parquet(self) -> None:
        import pyarrow.parquet

        files = sorted(self.folder.rglob("*.parquet"))
        for file in files:
            try:
                count = pyarrow.parquet.read_metadata(file).num_rows
            except Exception as error:
                size = file.stat().st_size
                why = str(error).splitlines()[0]
                raise BadInput(f"{self.where}: {file} ({size} bytes) is damaged: {why}") from None
            if not count:
                raise BadInput(f"{self.where}: {file} has no rows")

    def _explain(self, error: Exception, local: bool) -> str:
        while error.__cause__ is not None:  # the reason is at the bottom
            error = error.__cause__
        text = " ".join(str(error).split())[:200] or repr(error)
        if local or "BuilderConfig" in text:
            return f"cannot be read as {self.data.name} in the hub's row form: {text}"
        return (
            f"cannot be loaded from the hub ({type(error).__name__}: {text[:120]}); a local copy "
            "in the same row form is named by data.path=<folder>"
        )
