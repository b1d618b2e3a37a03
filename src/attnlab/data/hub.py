"""Rows of a data set, from the hub or from a local folder, read by `datasets`: parquet, JSON
lines, CSV, plain text (a row is a line of a .txt file), or a folder of images for each class.
"""

import hashlib
import json
import logging
import os
import warnings
from functools import cached_property
from pathlib import Path

from attnlab.data.cache import file_digest
from attnlab.errors import BadInput, first_line
from attnlab.runtime.network import prepare_hub

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
STRINGS = ("string", "large_string")
TEXT_FILES = {".txt", ".csv", ".tsv", ".json", ".jsonl"}
NAMES = "names of files and folders decide the split, see docs/data.md"


class Rows:
    """The splits of one data set.

    data: its section of the configuration. columns: those that must be there. Errors: `BadInput`
    for a missing folder, split or column, a damaged file, an unreachable hub.
    """

    def __init__(self, data, columns: list[str], cache: Path):
        self.data, self.columns, self.cache = data, columns, cache
        self.folder = Path(data.path).expanduser()
        looks_local = data.path.startswith((".", "/", "~")) or data.path.count("/") > 1
        if (looks_local or self.folder.exists()) and not self.folder.is_dir():
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
            return "|".join(rows._fingerprint for rows in self.splits.values())
        total = hashlib.sha256(f"{self.data.config}\n".encode())
        for file in self._files():
            total.update(f"{file.relative_to(self.folder)} {file_digest(file)}\n".encode())
        return total.hexdigest()

    @cached_property
    def splits(self) -> dict:
        """train, and validation and test where the data set has them, as `datasets.Dataset`s with
        all required columns and at least one row each.
        """
        local = self.folder.is_dir()
        if local:
            self._check_parquet()
        else:
            prepare_hub()
        import datasets  # 2 s: not for runs whose data is embedded or cached

        datasets.disable_progress_bars()
        for name in ("datasets", "huggingface_hub"):  # their errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # datasets' own cache goes by modification time; ours by content
        store = {"cache_dir": str(self.cache / f"rows-{self.fingerprint[:16]}")} if local else {}
        try:
            with warnings.catch_warnings(action="ignore"):
                path = str(self.folder.absolute()) if local else self.data.path
                builder = datasets.load_dataset_builder(path, self.data.config, **store)
                if local:
                    self._check_all_used(builder.config.data_files or {})
                builder.download_and_prepare()
                loaded = builder.as_dataset()
        except BadInput:
            raise
        except Exception as error:  # the hub's and arrow's errors share no base class
            raise BadInput(f"{self.where}: {self._explain(error, local)}") from None
        if "train" not in loaded:
            said = f"; {NAMES}" * local
            raise BadInput(f"{self.where}: no split train; it has {', '.join(loaded)}{said}")
        unused = [split for split in loaded if split not in SPLITS]
        if unused and not all(split in loaded for split in SPLITS):
            log.warning("%s: not used: splits %s", self.where, ", ".join(unused))
        return {split: self._checked(split, loaded[split]) for split in SPLITS if split in loaded}

    def _checked(self, split: str, rows):
        if missing := [c for c in self.columns if c not in rows.column_names]:
            classes = rows.column_names == ["image"]
            hint = "; images get labels from two or more folders, one a class" * classes
            raise BadInput(
                f"{self.where}: split {split} has no column {', '.join(missing)}; it has "
                f"{', '.join(rows.column_names)}{hint}"
            )
        column = getattr(self.data, "text_column", None)
        if column and getattr(rows.features[column], "dtype", None) not in STRINGS:
            found = rows.features[column]
            raise BadInput(f"{self.where}: split {split}, column {column} is no text but {found}")
        if not len(rows):
            raise BadInput(f"{self.where}: split {split} is empty")
        return rows

    def _files(self) -> list[Path]:
        def refuse(error: OSError):
            raise error  # a folder that cannot be read must not be left out in silence

        walked = os.walk(self.folder, onerror=refuse)
        files = (Path(folder, name) for folder, _, names in walked for name in names)
        return sorted(file for file in files if file.is_file())

    def _check_all_used(self, splits: dict[str, list[str]]) -> None:
        """Errors: `BadInput` if `datasets` would leave out files like those that it reads: one
        file with `train` in its name turns it away from all others. A README may mean it so.
        """
        if (self.folder / "README.md").exists():
            return
        used = {Path(file).resolve() for files in splits.values() for file in files}
        kinds = {file.suffix.lower() for file in used}
        files = [f for f in self._files() if not f.name.startswith(".")]
        rest = [f for f in files if f.resolve() not in used]
        if alike := [f for f in rest if f.suffix.lower() in kinds]:
            raise BadInput(
                f"{self.where}: {len(alike)} of its files would be ignored ({_some(alike)}), "
                f"because others are named after a split ({_some(sorted(used))}); {NAMES}"
            )
        if other := [f for f in rest if f.suffix.lower() in {*TEXT_FILES, ".parquet"} - kinds]:
            log.warning("%s: not read, of another format: %s", self.where, _some(other))

    def _check_parquet(self) -> None:
        import pyarrow.parquet

        files = sorted(self.folder.rglob("*.parquet"))
        for file in files:
            try:
                count = pyarrow.parquet.read_metadata(file).num_rows
            except Exception as error:
                size = file.stat().st_size
                why = first_line(error)
                raise BadInput(f"{self.where}: {file} ({size} bytes) is damaged: {why}") from None
            if not count:
                raise BadInput(f"{self.where}: {file} has no rows")

    def _explain(self, error: Exception, local: bool) -> str:
        while error.__cause__ is not None:  # the reason is at the bottom
            error = error.__cause__
        text = " ".join(str(error).split())[:200] or repr(error)
        if local and (found := next(filter(None, map(_wrong_text, self._files())), None)):
            return found
        if local and type(error).__name__ == "SchemaInferenceError":
            return "all its files are empty"
        files = self._files() if local and hasattr(self.data, "text_column") else []
        if files and not {*TEXT_FILES, ".parquet"} & {file.suffix.lower() for file in files}:
            text = "no .txt, .csv, .json, .jsonl or .parquet file there"
        if "BuilderConfig" in text and (there := text.partition("Available: ")[2]):
            return f"it has no configuration data.config={self.data.config}; it has {there}"
        if local:
            return f"cannot be read: {text}"
        return (
            f"no folder of this name is here, and it cannot be loaded from the hub "
            f"({type(error).__name__}: {text[:120]}); a local copy of the same form is named by "
            "data.path=<folder>"
        )


def _wrong_text(file: Path) -> str | None:
    """Where a file of text is not UTF-8, or a line of JSON lines is not JSON; None if neither."""
    if file.suffix.lower() not in TEXT_FILES:
        return None
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if file.suffix.lower() == ".jsonl" and line.strip() and (why := _not_json(line)):
                    return f"{file}, line {number} is not JSON: {why}"
    except UnicodeDecodeError as error:
        return (
            f"{file} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
            "iconv -f <encoding> -t utf-8 converts it"
        )
    return None


def _not_json(line: str) -> str | None:
    try:
        json.loads(line)
    except ValueError as error:
        return str(error)
    return None


def _some(files: list[Path]) -> str:
    """The names of the first ones."""
    return ", ".join(file.name for file in files[:3]) + ", ..." * (len(files) > 3)
