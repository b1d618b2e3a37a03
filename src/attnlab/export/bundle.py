"""The files of an exported model, and how their integrity is checked.

SHA256SUMS names every other file with its digest, in the format of `sha256sum`. It shows damage
and changes; it does not show who made the files.
"""

import json
from pathlib import Path
from typing import Any

from attnlab.config.mechanisms import Model
from attnlab.config.messages import checked
from attnlab.config.schema import CODE_VERSION, Arch
from attnlab.config.types import PositiveInt, Section
from attnlab.data.cache import file_digest
from attnlab.errors import BadInput

WEIGHTS, CONFIG, CODE = "model.safetensors", "config.json", "modeling_attnlab.py"
SUMS = "SHA256SUMS"
NEEDED = (CONFIG, WEIGHTS, CODE)


class Spec(Section):
    """What a model is built from, the section `attnlab` of config.json.

    version, code_version: of the attnlab that exported it. inputs, outputs, tokens: see
    `attnlab.models.transformer.Transformer`.
    """

    version: str
    code_version: int
    arch: Arch
    model: Model
    inputs: PositiveInt
    outputs: PositiveInt
    tokens: PositiveInt


def seal(folder: Path) -> None:
    """Write SHA256SUMS for all files of a folder."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    lines = (f"{file_digest(file)}  {file.name}\n" for file in files)
    (folder / SUMS).write_text("".join(lines))


def verify(folder: Path) -> list[str]:
    """Compare every file that SHA256SUMS names with its digest. Returns their names.

    Errors: `BadInput` in one line for a folder that is no export, or a file that is missing or is
    not the exported one.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeError):
        raise BadInput(f"{folder}: no exported model there (it has no readable {SUMS})") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if missing := [name for name in NEEDED if name not in sums]:
        raise BadInput(f"{folder / SUMS}: does not name {missing[0]}")
    for name, digest in sums.items():
        if Path(name).name != name:
            raise BadInput(f"{folder / SUMS}: {name!r} is not the name of a file beside it")
        file = folder / name
        if not file.is_file():
            raise BadInput(f"{file}: not there, but {SUMS} names it")
        if file_digest(file) != digest:
            raise BadInput(f"{file}: is not the file that was exported (sha256 differs)")
    return list(sums)


def read_spec(content: dict[str, Any], where: str) -> Spec:
    """The section `attnlab` of a config.json. where: how messages name that file.

    Errors: `BadInput` if it is none, or of code that computes other results.
    """
    spec = checked(Spec, content.get("attnlab"), f"{where}: attnlab")
    if spec.code_version != CODE_VERSION:
        raise BadInput(
            f"{where}: was exported by attnlab {spec.version}, code version {spec.code_version}; "
            f"this code is version {CODE_VERSION} and may compute other logits"
        )
    return spec


def read_config(folder: Path) -> Spec:
    """The `Spec` of an exported folder. Errors: see `read_spec`."""
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: not a JSON object")
    return read_spec(content, str(file))
