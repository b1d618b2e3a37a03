"""From a run folder to an exported model: a folder that appears whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from attnlab import __version__
from attnlab.config.schema import CODE_VERSION, Config
from attnlab.data.tokenizer import load_tokenizer
from attnlab.errors import BadInput
from attnlab.export import bundle
from attnlab.export.card import card, hub_id
from attnlab.export.load import build
from attnlab.runs.files import read_json
from attnlab.training import checkpoint

# What transformers calls the model, by arch.body: the Auto class and our own.
CLASSES = {
    "lm": ("AutoModelForCausalLM", "AttnlabForCausalLM"),
    "vit": ("AutoModelForImageClassification", "AttnlabForImageClassification"),
}


def export(cfg: Config, run: Path, out: Path) -> None:
    """Write the best checkpoint of a finished run to the folder `out`.

    Errors: `BadInput` if the run is not finished, lacks a file or is damaged, is of another body,
    or if `out` holds anything or cannot be written.
    """
    if cfg.arch.body not in CLASSES:
        raise BadInput(f"run={run}: arch.body={cfg.arch.body}: export knows {', '.join(CLASSES)}")
    result = _result(run)
    best = checkpoint.load_best(run / "checkpoints")
    spec = spec_of(cfg, best["model"])
    model = build(spec)
    checkpoint.load_weights(model, best, run)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"out={out}: is there already; name a folder that is not there, or empty")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=out.absolute().parent))
    except OSError as error:
        raise BadInput(f"out={out}: cannot be written: {error}") from None
    try:
        save_file(model.state_dict(), part / bundle.WEIGHTS, metadata={"format": "pt"})
        _write_json(part / bundle.CONFIG, _config(cfg, spec))
        if cfg.data.kind == "text":
            _write_tokenizer(run / "tokenizer.json", part, spec.tokens)
        shutil.copy(Path(__file__).with_name(bundle.CODE), part / bundle.CODE)
        (part / "README.md").write_text(card(cfg, run, result, CLASSES[cfg.arch.body][0]))
        (part / bundle.WEIGHTS).chmod(0o644)  # safetensors and mkdtemp let only the owner read
        part.chmod(0o755)
        bundle.seal(part)
        os.replace(part, out)  # onto nothing, or an empty folder
    except OSError as error:
        raise BadInput(f"out={out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the Hugging Face hub, with the token of `hf auth login` or of
    HF_TOKEN. repository: its id; it is created if it is missing. Returns its address.

    Errors: `BadInput` in one line if the folder is damaged or the hub refuses.
    """
    names = bundle.verify(folder)
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[*names, bundle.SUMS],  # nothing else that lies there
            commit_message=f"attnlab {__version__}",
        )
        return f"{api.endpoint}/{repository}"
    except Exception as error:  # the hub's errors share no base class
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"push={repository}: {why}") from None


def _result(run: Path) -> dict[str, Any]:
    result = read_json(run / "result.json")
    if result.get("status") != "finished":
        raise BadInput(f"run={run}: is not finished; the command that started it continues it")
    return result


def spec_of(cfg: Config, weights: dict[str, Any]) -> bundle.Spec:
    """The sizes are those of the weights: they need no data."""
    tokens = getattr(cfg.data, "sequence_length", None)
    embedding, head = weights["embedding.weight"], weights["head.weight"]
    if tokens is None:
        tokens = 1 + (cfg.data.image_size // cfg.arch.patch_size) ** 2
    return bundle.Spec(
        version=__version__,
        code_version=CODE_VERSION,
        arch=cfg.arch,
        model=cfg.model,
        inputs=embedding.shape[1 if cfg.arch.body == "vit" else 0],
        outputs=head.shape[0],
        tokens=tokens,
    )


def _config(cfg: Config, spec: bundle.Spec) -> dict[str, Any]:
    """config.json: what transformers asks for, what the model is built from, and how it was
    trained.
    """
    trained = cfg.model_dump(include={"seed", "scale", "protocol", "data", "trainer"})
    if "path" in trained["data"]:
        trained["data"]["path"] = hub_id(cfg)  # no folder of this machine
    auto, own = CLASSES[cfg.arch.body]
    module = Path(bundle.CODE).stem
    sizes = {
        "hidden_size": cfg.arch.width,
        "num_hidden_layers": cfg.arch.layers,
        "num_attention_heads": cfg.arch.heads,
    }
    if cfg.arch.body == "lm":
        sizes |= {"vocab_size": spec.outputs, "max_position_embeddings": spec.tokens}
    else:
        sizes |= {
            "image_size": cfg.data.image_size,
            "patch_size": cfg.arch.patch_size,
            "num_channels": 3,
            "id2label": {str(i): str(i) for i in range(spec.outputs)},
            "label2id": {str(i): i for i in range(spec.outputs)},
        }
    return {
        "model_type": "attnlab",
        "architectures": [own],
        "auto_map": {"AutoConfig": f"{module}.AttnlabConfig", auto: f"{module}.{own}"},
        "dtype": "float32",
        **sizes,
        "attnlab": spec.model_dump(),
        "trained": {"hash": cfg.hash, **trained},
    }


def _write_tokenizer(file: Path, out: Path, tokens: int) -> None:
    """The run's tokenizer in the form of transformers. It adds no special tokens, as in training,
    where post-processing (BERT's [CLS] and [SEP]) is left out.
    """
    load_tokenizer(file, str(file))  # refuses a damaged one
    content = json.loads(file.read_text())
    content |= {"post_processor": None, "truncation": None, "padding": None}
    known = {token["content"] for token in content["added_tokens"]}
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    _write_json(out / "tokenizer.json", content)
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokens,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **{key: token for key, token in special.items() if token in known},
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
