"""Translations of a whole split, and their BLEU and chrF by sacrebleu."""

from collections.abc import Iterable

from torch import nn

from attnlab.config.datasets import Translation
from attnlab.data.bpe import BOS, EOS, detokenize
from attnlab.data.pairs import PAD, Pairs
from attnlab.data.tokenizer import load_tokenizer
from attnlab.data.translation import TranslationData
from attnlab.functional import Autocast
from attnlab.models.beam import beam_search
from attnlab.runtime import distributed
from attnlab.training.evaluate import PREFIX

SAMPLES = 5  # shown in reports and in W&B
MOST_LOGITS = 2**27  # of the beams of all sources at a time, 0.5 GB in float32


def translated(
    model: nn.Module, data: TranslationData, autocast: Autocast
) -> tuple[dict[str, float | str], dict[str, str]]:
    """What `scores` says of validation and test, and the files that it can be measured from again:
    <split>.source.txt, <split>.reference.txt and <split>.translation.txt, a sentence a line.
    """
    metrics, files = {}, {}
    for split in ("validation", "test"):
        found = translations(model, data, split, autocast)
        sources, references = data.texts[split]
        prefix = "best/val" if split == "validation" else PREFIX[split]
        metrics |= scores(found, references, prefix, data.options.target)
        for name, lines in (
            ("source", sources),
            ("reference", references),
            ("translation", found),
        ):
            files[f"{split}.{name}.txt"] = "".join(f"{line}\n" for line in lines)
    return metrics, files


def translations(
    model: nn.Module, data: TranslationData, split: str, autocast: Autocast
) -> list[str]:
    """A translation of every source of a split, in their order; the processes share the work."""
    device = next(model.parameters()).device
    tokenizer = load_tokenizer(data.tokenizer_file, str(data.tokenizer_file))
    groups, was_training = data.evaluation(split), model.training
    model.eval()
    mine = {}
    for index in range(distributed.rank(), len(groups), distributed.world_size()):
        pairs, _ = groups.__getitems__([(0, index)])
        with autocast():
            found = translate(model, pairs.to(device), data.options)
        mine |= dict(zip(groups.members(0, index).tolist(), found, strict=True))
    model.train(was_training)
    every = {i: ids for part in distributed.gather(mine) for i, ids in part.items()}
    return [detokenize(tokenizer, every[i]) for i in range(len(every))]


def translate(model: nn.Module, pairs: Pairs, options: Translation) -> list[list[int]]:
    """Token ids of the best translations of the sources, as many of them at a time as MOST_LOGITS
    allows.
    """
    at_once = max(1, MOST_LOGITS // (options.beam_width * options.vocab_size))
    found: list[list[int]] = []
    for start in range(0, len(pairs), at_once):
        part = pairs[start : start + at_once]
        most = part.source_mask.sum(1) + options.extra_tokens
        found += beam_search(
            model,
            part.source,
            part.source_mask,
            most.clamp(max=options.sequence_length),
            width=options.beam_width,
            length_penalty=options.length_penalty,
            bos=BOS,
            eos=EOS,
            never=(PAD,),
        )
    return found


def scores(
    found: list[str], references: list[str], prefix: str, language: str
) -> dict[str, float | str]:
    """<prefix>/bleu and <prefix>/chrf, from 0 to 100, of all sentences together, and sacrebleu's
    signatures, which say how they were measured. language: of the translations; BLEU of Chinese,
    for example, is of characters.
    """
    from sacrebleu.metrics import BLEU, CHRF

    measured: dict[str, float | str] = {}
    for name, metric in (("bleu", BLEU(trg_lang=language)), ("chrf", CHRF())):
        measured[f"{prefix}/{name}"] = metric.corpus_score(found, [references]).score
        measured[f"{name}_signature"] = str(metric.get_signature())
    return measured


def samples(files: dict[str, str]) -> list[dict[str, str]]:
    """A few test sentences with reference and translation, evenly spread over the split."""
    names = ("source", "reference", "translation")
    sides = [files[f"test.{name}.txt"].split("\n")[:-1] for name in names]
    step = max(1, len(sides[0]) // SAMPLES)
    rows: Iterable[tuple[str, ...]] = zip(*(side[::step][:SAMPLES] for side in sides), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]
