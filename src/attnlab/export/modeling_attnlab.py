"""Loads an exported attnlab model in transformers, with trust_remote_code=True. Needs attnlab.

`from_pretrained` reads the weights by `attnlab.load`, which checks every file against SHA256SUMS
and executes and unpickles nothing.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput

from attnlab.export.bundle import read_spec, seal
from attnlab.export.load import build, load

DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# What the Auto classes add by themselves and what changes nothing here
IGNORED = ("trust_remote_code", "adapter_kwargs", "code_revision", "use_safetensors")

# Arguments of forward by which transformers says how, and not what, is to be computed
HARMLESS = ("num_items_in_batch", "use_cache", "cache_position")


class AttnlabConfig(PretrainedConfig):
    """config.json; its section `attnlab` is what the model is built from."""

    model_type = "attnlab"


class AttnlabModel(PreTrainedModel):
    """An attnlab transformer behind the interface of transformers."""

    config_class = AttnlabConfig
    base_model_prefix = "transformer"
    # transformers.Trainer divides the loss of a micro-batch itself, as the losses here are means
    accepts_loss_kwargs = False

    def __init__(self, config: AttnlabConfig, transformer: torch.nn.Module | None = None):
        super().__init__(config)
        self.transformer = transformer or build(read_spec(vars(config), "config.json"))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the values as they are: they are trained, or those of `build`."""

    @classmethod
    def from_pretrained(cls, name, *, config=None, dtype=None, torch_dtype=None, **options):
        """The model in a folder or hub repository `name`, on the CPU and in evaluation mode, as
        `attnlab.load` reads it. Other devices: `.to(device)`.

        Errors: `attnlab.errors.BadInput` for changed files, `TypeError` for options of
        transformers that are not supported.
        """
        download = {key: options.pop(key) for key in DOWNLOAD if options.get(key) is not None}
        given = [k for k, v in options.items() if v and k not in IGNORED and k[0] != "_"]
        if given:
            raise TypeError(f"{given[0]}: not supported by attnlab models")
        transformer = load(name, **download)
        if config is None:
            config = cls.config_class.from_pretrained(name, **download)
        dtype = dtype or torch_dtype
        if isinstance(dtype, str) and dtype != "auto":
            dtype = getattr(torch, dtype)
        config.dtype = torch.float32 if dtype in (None, "auto") else dtype
        return cls(config, transformer).to(config.dtype).eval()

    def load_state_dict(self, state_dict, *arguments, **options):
        """See torch; also by the names in model.safetensors, which transformers.Trainer loads."""
        prefix = f"{self.base_model_prefix}."
        named = {k if k.startswith(prefix) else prefix + k: v for k, v in state_dict.items()}
        return super().load_state_dict(named, *arguments, **options)

    def save_pretrained(self, save_directory, **options) -> None:
        """See transformers; `attnlab.load` reads the folder as it reads an exported one, whose
        weights are one file whatever their size.
        """
        options["max_shard_size"] = sys.maxsize
        options["state_dict"] = self.transformer.state_dict()
        super().save_pretrained(save_directory, **options)
        code = Path(save_directory, Path(__file__).name)
        if not code.exists():  # transformers copies it only for models from an Auto class
            code.write_bytes(Path(__file__).read_bytes())
        seal(Path(save_directory))


def _refuse(others: dict) -> None:
    """Refuse arguments meant to change the result; ignore those without effect."""
    if others.pop("return_dict", None) is False:
        raise TypeError("return_dict=False: attnlab models return an object with names")
    for name, value in others.items():
        if value is not None and value is not False and name not in HARMLESS:
            raise TypeError(f"{name}: not supported by attnlab models")


class AttnlabForCausalLM(AttnlabModel, GenerationMixin):
    """A causal language model."""

    def forward(self, input_ids, attention_mask=None, labels=None, **others) -> CausalLMOutput:
        """input_ids (B, N) -> logits (B, N, V). labels (B, N): as input_ids, -100 where there is
        no loss. attention_mask (B, N): padding may stand on the right only, where no earlier token
        sees it. Errors: ValueError for padding elsewhere, or more tokens than in training;
        TypeError for an argument of transformers that is not supported.
        """
        _refuse(others)
        longest = self.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ValueError(f"input_ids: {input_ids.shape[1]} tokens; at most {longest}")
        if attention_mask is not None:
            seen = attention_mask.bool()
            if not seen[:, 0].all() or (seen[:, 1:] & ~seen[:, :-1]).any():
                raise ValueError("attention_mask: padding may stand on the right only")
        logits = self.transformer(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **unused) -> dict:
        """The whole window for every token, as far as the model can see; there is no cache."""
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("attention_mask: text is generated from prompts of one length")
        return {"input_ids": input_ids[:, -self.config.max_position_embeddings :]}


class AttnlabForImageClassification(AttnlabModel):
    """A vision transformer."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values, labels=None, **others) -> ImageClassifierOutput:
        """pixel_values (B, 3, S, S) in [-1, 1] -> logits (B, C). labels (B,). Errors: TypeError
        for an argument of transformers that is not supported.
        """
        _refuse(others)
        logits = self.transformer(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
