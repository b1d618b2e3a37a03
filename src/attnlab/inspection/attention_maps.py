"""Attention maps of a trained model: every layer and head, for a text or a test image.

Shapes: L layers, H heads, N tokens (of an image: the class token, then its patches) that attend to
M (the same ones, or those of a translation's source), S pixels.
"""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.config.schema import Config
from attnlab.data.bpe import BOS, EOS, detokenize
from attnlab.data.loader import build_data
from attnlab.data.pairs import Pairs
from attnlab.data.tokenizer import marked
from attnlab.errors import BadInput
from attnlab.inspection.trained import trained
from attnlab.inspection.translate import encoded
from attnlab.runs.files import slug, write_atomic
from attnlab.runtime.device import choose_device
from attnlab.training import checkpoint
from attnlab.training.model import build
from attnlab.training.resume import check_same_data
from attnlab.training.translate import translate
from attnlab.training.update import precision

LONGEST = 200  # characters of a text in a message or a caption
LONGEST_NAME = 60  # and in a file name
Found = tuple[Path, Config]  # a run folder and its configuration


@dataclass
class View:
    """The attention maps of one run, for one text or image.

    weights: (L, H, N, M) for the L `layers`; rows are queries, columns keys. subject: what was
    looked at, in words. tokens: those of a text, or, with `source` as its keys, those of its
    translation. image: (S, S, 3) from 0 to 1; None for a text.
    """

    cfg: Config
    layers: list[int]
    weights: Tensor
    subject: str
    tokens: list[str]
    image: Tensor | None = None
    source: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the run whose maps these are."""
        return f"{self.cfg.model.name}, seed {self.cfg.seed}"

    def mechanism(self, layer: int) -> str:
        """That of one layer: only some may have the model's own."""
        own = layer in self.cfg.model.applies(self.cfg.arch.layers)
        if self.source:
            own = own and "cross" in self.cfg.arch.attentions
        return self.cfg.model.mechanism if own else "dot_product"


def views(runs: list[Found], text: str | None, image: int | None, layers: str) -> list[View]:
    """One view for each of one or two runs, from their best checkpoints.

    layers: `all`, or numbers from 0 with commas between. Errors: `BadInput` for neither or both
    of text and image, for runs that cannot show what is asked for, or not side by side.
    """
    if (text is None) == (image is None):
        raise BadInput('text=, image=: give one of them, text="..." or image=<number>')
    for other in runs[1:]:
        _check_alike(runs[0], other)
    for path, cfg in runs:
        _check_kind(path, cfg, text)
    chosen = [_layers(layers, *found) for found in runs]
    view, what = VIEWS[runs[0][1].data.kind], image if text is None else text
    return [view(*found, what, c) for found, c in zip(runs, chosen, strict=True)]


def file_name(text: str | None, image: int | None, others: list[Config]) -> str:
    """That of the picture. The same words always get the same one."""
    name = f"image_{image}" if text is None else slug(text)[:LONGEST_NAME].strip("_") or "text"
    return "_".join((name, *(f"{cfg.model.name}_seed{cfg.seed}" for cfg in others))) + ".png"


def save(found: list[View], file: Path) -> None:
    """The maps as arrays in an .npz file: weights (L, H, N, M), layers (L) and, of a text, tokens
    (N), of a translation also source (M); of a second run with `other_` in front.
    """
    arrays = {}
    for prefix, view in zip(("", "other_"), found, strict=False):
        arrays[f"{prefix}weights"] = view.weights.numpy()
        arrays[f"{prefix}layers"] = np.array(view.layers)
        if view.tokens:
            arrays[f"{prefix}tokens"] = np.array(view.tokens)
        if view.source:
            arrays[f"{prefix}source"] = np.array(view.source)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    try:
        write_atomic(file, buffer.getvalue())
    except OSError as error:
        raise BadInput(f"out={file}: cannot be written: {error}") from None


def _check_alike(first: Found, second: Found) -> None:
    """Errors: `BadInput` naming the keys in which two runs must agree to stand side by side."""
    (path, ours), (other, theirs) = first, second
    keys = [("arch.body", ours.arch.body, theirs.arch.body)]
    if ours.data.kind == theirs.data.kind == "image":
        keys.append(("data.name", ours.data.name, theirs.data.name))
        keys.append(("data.image_size", ours.data.image_size, theirs.data.image_size))
    for key, mine, its in keys:
        if mine != its:
            raise BadInput(f"other={other}: {key} is {its}, but {mine} in run={path}")
    files = [folder / "tokenizer.json" for folder in (path, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        raise BadInput(f"other={other}: its tokenizer.json is not the one of run={path}")


def _check_kind(path: Path, cfg: Config, text: str | None) -> None:
    """Errors: `BadInput` if a run reads neither texts nor images, or not what is given."""
    kind = cfg.data.kind
    reads_text = kind in ("text", "translation") and (path / "tokenizer.json").is_file()
    if kind != "image" and not reads_text:
        raise BadInput(
            f"{path}: data={cfg.data.name} is neither images nor text with a tokenizer.json; "
            "nothing else can be shown"
        )
    if kind == "image" and text is not None:
        raise BadInput(f"text={_short(text)}: {path} reads images; give image=<number>")
    if reads_text and text is None:
        raise BadInput(f'image=: {path} reads text; give text="..."')


def _layers(said: str, path: Path, cfg: Config) -> list[int]:
    depth = cfg.arch.layers
    if said == "all":
        return list(range(depth))
    words = [word.strip() for word in said.split(",")]
    if not all(word.isdecimal() and int(word) < depth for word in words):
        raise BadInput(
            f"layers={said}: must be all, or some of 0 to {depth - 1} as in 0,1 ({path})"
        )
    return sorted(set(map(int, words)))


def _text_view(path: Path, cfg: Config, text: str, layers: list[int]) -> View:
    device = choose_device(cfg.runtime, cfg.trainer.precision)
    tokenizer, model = trained(cfg, path, device)
    (read,) = marked(tokenizer, [text])
    ids = tokenizer.encode(read, add_special_tokens=False).ids
    most = cfg.data.sequence_length
    if not 1 <= len(ids) <= most:
        raise BadInput(
            f"text={_short(text)}: is {len(ids)} tokens; must be from 1 to "
            f"data.sequence_length={most} of {path}"
        )
    mechanisms = [model.blocks[layer].attention.mechanism for layer in layers]
    weights = maps(model, torch.tensor(ids, device=device)[None], mechanisms)
    return View(cfg, layers, weights, f'"{_short(text)}"', [_label(tokenizer, i) for i in ids])


def _translation_view(path: Path, cfg: Config, text: str, layers: list[int]) -> View:
    """Cross-attention, while the run's own translation of the text is written."""
    device = choose_device(cfg.runtime, cfg.trainer.precision)
    tokenizer, model = trained(cfg, path, device)
    source = torch.tensor(encoded(cfg, tokenizer, text), device=device)[None]
    with precision(cfg.trainer, device)():  # as the run translates
        (ids,) = translate(model, Pairs(source, source[:, :0]), cfg.data)
    target = torch.tensor([[BOS, *ids]], device=device)
    mechanisms = [model.decoder[layer].cross.mechanism for layer in layers]
    weights = maps(model, Pairs(source, target), mechanisms)
    written = [_label(tokenizer, i) for i in (*ids, EOS)]
    read = [_label(tokenizer, i) for i in source[0].tolist()]
    said = f'"{_short(text)}", translated as "{_short(detokenize(tokenizer, ids))}"'
    return View(cfg, layers, weights, said, written, source=read)


def _image_view(path: Path, cfg: Config, index: int, layers: list[int]) -> View:
    device, data = (
        choose_device(cfg.runtime, cfg.trainer.precision),
        build_data(cfg.data, cfg.seed, cfg.runtime.cache),
    )
    images = data.evaluation("test")
    if not 0 <= index < len(images):
        raise BadInput(
            f"image={index}: must be from 0 to {len(images) - 1} (data={cfg.data.name})"
        )
    best = checkpoint.load_best(path / "checkpoints")
    check_same_data(best["data"], data, path)
    model = build(cfg, data).to(device).eval()
    checkpoint.load_weights(model, best, path)
    pixels, label = images.__getitems__([(0, index)])
    mechanisms = [model.blocks[layer].attention.mechanism for layer in layers]
    weights = maps(model, pixels.to(device), mechanisms)
    name = f", {data.names[label]}" if data.names else ""
    subject = f"test image {index} of {cfg.data.name} (class {int(label)}{name})"
    return View(cfg, layers, weights, subject, [], (pixels[0].permute(1, 2, 0) + 1) / 2)


@torch.no_grad()
def maps(model: nn.Module, inputs: Tensor | Pairs, mechanisms: list[nn.Module]) -> Tensor:
    """(L, H, N, M) on the CPU: the matrices by which L mechanisms, in the order in which the model
    calls them, mix values.

    inputs: a batch of one, as the model takes it.
    """
    found: list[Tensor] = []

    def collect(mechanism, args, kwargs):
        q, k, _ = args
        found.append(mechanism.mixing(q, k, **kwargs)[0].cpu())

    with contextlib.ExitStack() as hooks:
        for mechanism in mechanisms:
            hook = mechanism.register_forward_pre_hook(collect, with_kwargs=True)
            hooks.enter_context(hook)
        model(inputs)
    return torch.stack(found)


VIEWS = {"text": _text_view, "translation": _translation_view, "image": _image_view}


def _label(tokenizer, token: int) -> str:
    """A token as a reader would write it; decoded, as byte-level ones are not readable else."""
    decoded = tokenizer.decode([token], skip_special_tokens=False).strip()
    return decoded or tokenizer.id_to_token(token)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
