"""An exported model as a torch module. Nothing in its folder is executed or unpickled."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from attnlab.errors import BadInput, first_line
from attnlab.export import bundle
from attnlab.models.transformer import Transformer, build_model


def load(source: str | Path, **download: Any) -> Transformer:
    """The model that `attnlab export` wrote, on the CPU and in evaluation mode.

    It maps ids (B, N) to logits (B, N, V), or images (B, 3, S, S) in [-1, 1] to logits (B, C).
    source: its folder, or the id of a repository on the Hugging Face hub; download: arguments of
    `huggingface_hub.snapshot_download`, such as revision and token. Logits are those of the run's
    best checkpoint, bit for bit on the same machine. Errors: `BadInput` in one line if a file is
    missing, was changed or does not fit the others, or the hub does not answer.
    """
    folder = local(source, **download)
    bundle.verify(folder)
    model = build(bundle.read_config(folder))
    try:
        model.load_state_dict(load_file(folder / bundle.WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        first = [line.strip() for line in str(error).splitlines()][:2][-1]
        raise BadInput(f"{folder / bundle.WEIGHTS}: does not fit config.json: {first}") from None
    return model.eval()


def build(spec: bundle.Spec) -> Transformer:
    """The untrained model of a configuration."""
    sizes = {"inputs": spec.inputs, "outputs": spec.outputs, "tokens": spec.tokens}
    with torch.random.fork_rng(devices=[]):  # torch's own initial values draw from it
        return build_model(spec.arch, spec.model, seed=0, **sizes)


def local(source: str | Path, **download: Any) -> Path:
    """The folder itself, or a copy of the repository on the hub. Errors: see `load`."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(source), **download))
    except HFValidationError:
        raise BadInput(f"{source}: neither a folder nor the id of a repository") from None
    except Exception as error:  # the hub's errors share no base class
        why = first_line(error)
        raise BadInput(f"{source}: no such folder, and not loaded from the hub: {why}") from None
