"""Translation: encoder and decoder, batches of similar lengths, beam search, BLEU and resume."""

import itertools
import json
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from conftest import MODELS, Halts, config, metrics, same_run, write_rows
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_attention import HEADS, PAIRWISE, VARIANTS, WIDTH, configured, loop, mechanism, one_head

from attnlab import cli
from attnlab.config.compose import load
from attnlab.data.bpe import BOS, EOS, detokenize, train_bpe
from attnlab.data.loader import build_data
from attnlab.data.pairs import PAD, Pairs
from attnlab.data.symbols import UNSCORED
from attnlab.data.translation import Groups, Sentences
from attnlab.errors import BadInput
from attnlab.inspection.attention_maps import views
from attnlab.inspection.trained import trained
from attnlab.inspection.translate import encoded, translations
from attnlab.models.attention.dot import DotProductAttention
from attnlab.models.beam import beam_search
from attnlab.models.seq2seq import CrossAttention
from attnlab.models.transformer import build_model
from attnlab.report.collect import collect
from attnlab.report.maps import plot
from attnlab.report.render import report
from attnlab.report.summary import markdown
from attnlab.run import run
from attnlab.runs.tracking import Mirror
from attnlab.training import translate
from attnlab.training.optim import learning_rate
from attnlab.training.translate import scores
from attnlab.training.update import training_loss

CROSSING = [name for name in VARIANTS if name != "identity"]
BODY = ("data=multi30k", "scale=smoke")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CROSSING)
def test_cross_attention_equals_a_loop_over_the_tokens_of_the_source(name, dtype):
    """From each mechanism's equation, over real tokens only, whatever the padding holds: in
    float64 and, by the fused kernels where there are some, in float32.
    """
    cfg, module = configured(name), mechanism(name)
    torch.manual_seed(0)
    cross = CrossAttention(cfg.arch, module).to(dtype)
    target = torch.randn(2, 3, HEADS * WIDTH, dtype=dtype)
    source = torch.randn(2, 5, HEADS * WIDTH, dtype=dtype)
    lengths = (5, 2)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None])[:, None, None]
    disturbed = source.clone()
    disturbed[1, 2:] = 9.0
    equation = PAIRWISE[cfg.model.mechanism]
    exact, alone = cross.double(), [one_head(module, head) for head in range(HEADS)]
    with torch.no_grad():
        wanted = []
        for x, y, length in zip(target.double(), source.double(), lengths, strict=True):
            q = exact.q(x).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            k, v = (part[0] for part in exact.keys_values(y[None, :length]))
            seen = torch.ones(len(x), length, dtype=torch.bool)
            heads = [loop(equation, alone[h], q[h], k[h], seen) @ v[h] for h in range(HEADS)]
            wanted.append(exact.out(torch.stack(heads, 1).flatten(1)))
        cross.to(dtype)
        found = [cross(target, *cross.keys_values(y), mask) for y in (source, disturbed)]
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for out in found:
        torch.testing.assert_close(out.double(), torch.stack(wanted), rtol=limit, atol=limit)


def seq2seq(name, vocab=20, **arch):
    """The smallest body with a mechanism in every layer."""
    model, body = configured(name).model, small_config().arch
    if hasattr(model, model.layers_key):
        model = model.model_copy(update={model.layers_key: list(range(body.layers))})
    if name == "identity":
        arch["attentions"] = ["encoder", "decoder"]
    body = body.model_copy(update=arch)
    sizes = {"inputs": vocab, "outputs": vocab, "tokens": 16}
    return build_model(body, model, 0, **sizes).double().eval()


@cache
def small_config():
    return config(*BODY)


VARIED = [(name, {}) for name in MODELS] + [
    ("neural_d2", {"norm": "pre", "positions": "rotary", "tied_embeddings": False}),
    ("dagpam", {"positions": "learned", "embedding_norm": True}),
]


@pytest.mark.parametrize(("name", "arch"), VARIED, ids=str)
def test_a_pair_does_not_see_padding_nor_what_comes_later(name, arch):
    """In a batch with a longer pair, and with other embeddings of padding, its logits are those of
    the pair alone; and cached decoding, token by token, gives the same ones.
    """
    model = seq2seq(name, **arch)
    source, target = torch.randint(3, 20, (2, 2, 7))
    target[:, 0] = BOS
    source[0, 4:], target[0, 5:] = PAD, PAD
    batch = Pairs(source, target)
    with torch.no_grad():
        alone = model(batch[0][None])
        tokens = model.embedding.weight.clone()
        for embedding in (1.0, 50.0):
            for table in {model.embedding, model.target_embedding} - {None}:
                table.weight[PAD] = embedding
            both = model(batch)[0, :5]
            same = torch.arange(20) != PAD  # padding is an output too if embeddings are tied
            torch.testing.assert_close(both[:, same], alone[0][:, same], rtol=1e-9, atol=1e-10)
        model.embedding.weight.copy_(tokens)
        encoded, cache = model.encode(source, batch.source_mask), model.new_cache()
        steps = [model.decode(piece, encoded, cache) for piece in target.split([1, 3, 1, 2], 1)]
        torch.testing.assert_close(torch.cat(steps, 1), model(batch), rtol=1e-9, atol=1e-10)


def test_the_mechanism_stands_where_it_is_told_and_all_else_starts_the_same():
    whole = seq2seq("dot_product").state_dict()
    for places in (["encoder"], ["decoder"], ["cross"], ["decoder", "cross"]):
        model = seq2seq("dagpam", attentions=places)
        parts = {"encoder": model.encoder, "decoder": model.decoder, "cross": model.decoder}
        for place, blocks in parts.items():
            own = {"cross": "cross"}.get(place, "attention")
            plain = {isinstance(getattr(b, own).mechanism, DotProductAttention) for b in blocks}
            assert plain == {place not in places}
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    """DistributedDataParallel waits for one of each; uniform attention reads no queries."""
    model = seq2seq(name)
    model(Pairs(*torch.randint(3, 20, (2, 2, 7)))).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("places", [["encoder", "decoder", "cross"], ["cross"]], ids=len)
def test_a_wide_arm_has_units_for_every_attention_of_dagpam(places):
    counts = []
    for name in ("dagpam", "dot_product_wide_dagpam", "dot_product"):
        cfg = config(*BODY, f"model={name}", f"arch.attentions=[{','.join(places)}]")
        model = build_model(cfg.arch, cfg.model, 0, inputs=20, outputs=20, tokens=16)
        counts.append(sum(p.numel() for p in model.parameters()))
    dagpam, wide, dot = counts
    assert dagpam - dot <= wide - dot < 2 * (dagpam - dot)


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(24, 80), st.integers(0, 2**31))
def test_every_pair_is_in_one_group_of_an_epoch(lengths, tokens, seed):
    """Groups are no larger than allowed; another object for the same seed has the same ones, in
    whatever order it is asked; their number and lengths are the same in every epoch.
    """
    assume(any(max(pair) <= 24 for pair in lengths))
    changed = {"sequence_length": 24, "group_tokens": tokens}
    options = small_config().data.model_copy(update=changed)
    sides = [
        Sentences(np.arange(sum(column)), np.cumsum(column))
        for column in zip(*lengths, strict=True)
    ]
    groups, again = (Groups(*sides, options, seed) for _ in range(2))
    whole = [i for i, pair in enumerate(lengths) if max(pair) <= 24]
    shapes = []
    for epoch in (0, 1):
        members = [groups.members(epoch, i) for i in range(len(groups))]
        assert sorted(i for group in members for i in group) == whole
        sizes = [[max(lengths[i]) for i in group] for group in members]
        assert all(len(size) * max(size) <= tokens for size in sizes)
        shapes.append(sizes)
        for i in reversed(range(len(groups))):
            assert np.array_equal(again.members(epoch, i), members[i])
            again.members(1 - epoch, i)
    assert shapes[0] == shapes[1]


def test_epochs_and_seeds_put_other_pairs_together():
    ends = np.arange(1, 101) * 4
    sides = [Sentences(np.arange(400), ends)] * 2
    options = small_config().data.model_copy(update={"group_tokens": 40})
    one, other = (Groups(*sides, options, seed) for seed in (0, 1))
    found = [g.members(epoch, 0).tolist() for g in (one, other) for epoch in (0, 1)]
    assert len({tuple(sorted(f)) for f in found}) == 4
    pairs, targets = one.__getitems__([(0, 0)])
    first = one.members(0, 0)[0]
    assert pairs.source[0].tolist() == targets[0].tolist() == list(range(4 * first, 4 * first + 4))
    assert pairs.target[0].tolist() == [BOS, *pairs.source[0, :3]]


@settings(max_examples=50)
@given(st.text())
@example("a [PAD] b [EOS][BOS]")
def test_decoding_gives_back_any_text(text):
    ids = BPE.encode(text).ids
    assert detokenize(BPE, ids) == " ".join(text.split())


TEXTS = [f"{a} {b}{c}" for a, b, c in itertools.product(("Ein", "A"), ("Hund", "dog"), ".?ß")]
BPE = train_bpe(TEXTS, 290)


def test_bpe_is_the_same_every_time():
    assert BPE.to_str() == train_bpe(TEXTS, 290).to_str()
    assert BPE.get_vocab_size() <= 290 and [BPE.token_to_id(t) for t in ("[PAD]", "[BOS]")] == [
        PAD,
        BOS,
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("name", ["dot_product", "neural_d2"])
def test_a_wide_beam_finds_what_exhaustive_search_finds(name, alpha):
    """All translations of up to 4 tokens of a vocabulary of 6, scored one by one, without cache
    and without padding. A beam of 1 is greedy search.
    """
    model = seq2seq(name, vocab=6)
    with torch.no_grad():
        model.embedding.weight.mul_(3)  # untrained, but with a choice to make
    sources, limits = [[3, 4, 5, EOS], [5, EOS], [4, 4, EOS]], [4, 2, 3]
    ids = torch.tensor([s + [PAD] * (4 - len(s)) for s in sources])
    words = {"length_penalty": alpha, "bos": BOS, "eos": EOS, "never": (PAD,)}
    args = (model, ids, ids != PAD, torch.tensor(limits))
    found, greedy = (beam_search(*args, width=width, **words) for width in (200, 1))
    for i, (source, limit) in enumerate(zip(sources, limits, strict=True)):

        def log_p(target, source=source):
            pairs = Pairs(torch.tensor([source]), torch.tensor([[BOS, *target]]))
            with torch.no_grad():
                return model(pairs)[0].log_softmax(-1)

        best = {}
        for length in range(limit):
            for target in itertools.product((3, 4, 5), repeat=length):
                score = log_p(target)[range(length + 1), [*target, EOS]].sum()
                best[target] = float(score) / ((5 + length + 1) / 6) ** alpha
        assert tuple(found[i]) == max(best, key=best.get)
        path: list[int] = []
        while len(path) < limit - 1:
            token = 2 + int(log_p(path)[-1, 2:].argmax())
            if token == EOS:
                break
            path.append(token)
        assert greedy[i] == path


def test_label_smoothing_and_schedule_are_the_published_ones():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, UNSCORED], [4, UNSCORED, 2]])
    log_p = logits.log_softmax(-1)
    wanted = [
        -(0.9 * log_p[i, j, targets[i, j]] + 0.1 * log_p[i, j].mean())
        for i, j in itertools.product(range(2), range(3))
        if targets[i, j] != UNSCORED
    ]
    torch.testing.assert_close(
        training_loss(logits, targets, smoothing=0.1), torch.stack(wanted).mean()
    )
    options = config("data=multi30k", "scale=paper").trainer
    for step in (0, 10, 3999, 4000, 50_000):
        paper = 512**-0.5 * min((step + 1) ** -0.5, (step + 1) * 4000**-1.5)
        assert learning_rate(step, 10**5, 0.0, options) == pytest.approx(paper, rel=0.01)


BAD = [
    ("data=multi30k arch=lm", "lm reads text and symbols, vit images, seq2seq translation"),
    ("data=multi30k arch.attentions=[cros]", "did you mean cross?"),
    ("data=multi30k arch.attentions=[cross,cross]", "an attention is named twice"),
    ("data=multi30k model=identity", "a query of cross-attention has no key of its own"),
    ("data=multi30k data.target=en", "must be another language than data.source"),
    ("data=multi30k data.group_tokens=9", "data.sequence_length=256: must be at most"),
    ("data=multi30k trainer.warmup_steps=0", "schedule=inverse_sqrt needs at least one"),
    ("data=multi30k data.beam_width=0", "must be greater than or equal to 1"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_override_is_one_clear_line(overrides, message):
    with pytest.raises(BadInput) as error:
        cli.check_overrides(overrides.split())
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def sentence_pairs(count, seed):
    """A language with a word for each number, and another one that says them backwards."""
    random = np.random.default_rng(seed)
    rows = [random.integers(30, size=random.integers(2, 9)) for _ in range(count)]
    pairs = [(" ".join(f"w{i}" for i in r), " ".join(f"v{i}" for i in r[::-1])) for r in rows]
    return [{"en": en, "de": f"{de}."} for en, de in pairs]


@pytest.fixture(scope="session")
def translation_rows(tmp_path_factory):
    """A data set in the row form of the hub's translation data."""
    folder = tmp_path_factory.mktemp("multi30k")
    sizes = {"train": 300, "validation": 12, "test": 12}
    splits = {
        split: {"translation": sentence_pairs(n, i)} for i, (split, n) in enumerate(sizes.items())
    }
    write_rows(folder, "de-en", splits)
    return folder


@pytest.fixture(scope="session")
def small(translation_rows, cache):
    return [
        *(*BODY, f"data.path={translation_rows}", "data.vocab_size=330", "logger=none"),
        *("data.group_tokens=256", "data.extra_tokens=4", "trainer.warmup_steps=5"),
        *("trainer.max_steps=20", "trainer.eval_every=10", "trainer.save_every=4"),
        *("runtime.device=cpu", f"runtime.cache={cache}", "runtime.threads=1"),
    ]


@pytest.fixture(scope="session")
def whole(small, tmp_path_factory):
    """A run from its start to its end."""
    folder = tmp_path_factory.mktemp("translation") / "whole"
    run(config(*small), folder)
    return folder


def test_speed_counts_no_tokens_where_it_knows_none(whole):
    """Groups of sentences that are evaluated have other sizes than those of training."""
    found = result(whole)
    assert found["tokens_per_s"] > 0 and found["eval_samples_per_s"] > 0
    assert found["eval_tokens_per_s"] is None
    rows = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert not any("throughput/eval_tokens_per_s" in row for row in rows)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_first_losses_are_the_golden_ones(whole):
    """As in test_golden: if they differ, mend the code, or raise CODE_VERSION and put in new."""
    found = [row["train/loss"] for row in metrics(whole) if "train/loss" in row]
    assert [found[0], found[9], found[19]] == pytest.approx(GOLDEN, rel=2e-5)
    assert result(whole)["test/loss"] == pytest.approx(TESTED, rel=2e-5)


GOLDEN, TESTED = [6.270047187805176, 5.194543838500977, 4.475668430328369], 4.312320508454976


def test_two_processes_train_and_translate_as_one(train, small, tmp_path):
    """A first layer of uniform attention has parameters without a gradient for some processes."""
    for name, processes in (("one", 1), ("two", 2)):
        code, _, err = train(*small, "model=uniform", f"hydra.run.dir={name}", processes=processes)
        assert code == 0, err
    for file in ("metrics.jsonl", "test.translation.txt"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two, file


def sacrebleu(reference, translation):
    """What sacrebleu's own command line says of two files, by the names of our results."""
    command = [sys.executable, "-m", "sacrebleu", str(reference), "-i", str(translation)]
    command += ["-m", "bleu", "chrf", "-w", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bleu, chrf = json.loads(done.stdout)
    return {
        "test/bleu": pytest.approx(bleu["score"], abs=1e-9),
        "bleu_signature": bleu["signature"],
        "test/chrf": pytest.approx(chrf["score"], abs=1e-9),
        "chrf_signature": chrf["signature"],
    }


def test_bleu_is_that_of_sacrebleu_itself_on_the_written_files(whole, tmp_path):
    """Of a run, which has learned little yet, and of translations that are partly right."""
    reference, found = whole / "test.reference.txt", result(whole)
    said = sacrebleu(reference, whole / "test.translation.txt")
    assert {key: found[key] for key in said} == said
    lines = [line.lower().replace("v1", "v") for line in reference.read_text().splitlines()]
    (tmp_path / "partly.txt").write_text("".join(f"{line}\n" for line in lines))
    measured = scores(lines, reference.read_text().splitlines(), "test", "de")
    assert measured == sacrebleu(reference, tmp_path / "partly.txt")
    assert 20 < measured["test/bleu"] < 95
    sides = [(whole / f"test.{s}.txt").read_text().splitlines() for s in ("source", "reference")]
    expected = [(row["en"], row["de"]) for row in sentence_pairs(12, 2)]
    assert list(zip(*sides, strict=True)) == expected and found["test_samples"] == 12


def test_bleu_of_chinese_is_of_characters():
    """It has no spaces, so that a line would be one word."""
    found, reference = ["我昨天在公园里看到了一只狗"], ["我昨天在公园里看到了一只猫"]
    assert scores(found, reference, "test", "zh")["test/bleu"] > 80
    assert scores(found, reference, "test", "de")["test/bleu"] < 1


def test_many_beams_are_searched_a_few_sources_at_a_time(whole, small, monkeypatch):
    """Which changes no translation."""
    lines = (whole / "test.source.txt").read_text().splitlines()[:5]
    cfg, cpu = load(whole), torch.device("cpu")
    together = translations(cfg, whole, lines, cpu)
    monkeypatch.setattr(translate, "MOST_LOGITS", 2 * cfg.data.beam_width * cfg.data.vocab_size)
    assert translations(cfg, whole, lines, cpu) == together


def test_a_killed_run_ends_as_an_uninterrupted_one(start, small, whole, tmp_path):
    """Bit for bit, translations included. It is killed with SIGKILL in its second epoch, whose
    groups hold other pairs than the first one's.
    """
    halts = Halts(tmp_path, ("open a metrics.jsonl", 15))
    process = start(*small, "hydra.run.dir=killed", **halts.env)
    halts.wait(process)
    process.kill()
    process.communicate()
    killed = tmp_path / "killed"
    assert metrics(killed)[-1]["step"] < 20 and not (killed / "result.json").is_file()
    cfg = config(*small)
    assert len(build_data(cfg.data, cfg.seed, cfg.runtime.cache).train()) < 2 * 15
    run(cfg, killed)
    assert same_run(killed, whole)
    assert result(killed)["samples"] == result(whole)["samples"]


def test_report_and_wandb_show_scores_and_sample_translations(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "runs" / "whole")
    report(tmp_path / "runs", tmp_path / "report")
    said, found = (tmp_path / "report" / "report.md").read_text(), result(whole)
    row = next(
        line for line in said.split("### Translation")[1].splitlines() if "neural_d2" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    cell = [f"{found[key]:.2f}" for key in ("test/bleu", "test/chrf", "best/val/bleu")]
    assert cells == ["neural_d2", *cell, "—", "—", "1"]  # no baseline, and nothing published
    sample = found["samples"][0]
    for text in (found["bleu_signature"], sample["source"], sample["reference"]):
        assert text in said
    assert "test BLEU" in markdown(collect(tmp_path / "runs"))
    mirror = Mirror(load(whole), tmp_path / "runs" / "whole", {}, "offline")
    mirror.finish(found)
    (table,) = (tmp_path / "runs").rglob("media/table/samples*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == list(sample) and shown["data"][0] == list(sample.values())


def test_report_tells_what_depth_does_in_encoder_decoder_and_cross_attention(small, tmp_path):
    short = ("trainer.max_steps=2", "trainer.eval_every=2", "trainer.warmup_steps=1")
    cfg = config(*small, *short, "trainer.diagnostics=true")
    run(cfg, tmp_path / "runs" / "one")
    report(tmp_path / "runs", tmp_path / "report")
    lines = (tmp_path / "report" / "report.md").read_text().split("### Over depth")[1].splitlines()
    last = [f"layer {part * cfg.arch.layers - 1}" for part in (1, 2, 3)]
    assert [cell.strip() for cell in lines[2].split("|")[4:7]] == last
    shown = {
        line.split("|")[1].strip(): line.split("|")[4:7] for line in lines[4:] if line[:1] == "|"
    }
    means, weights = (
        shown[key] for key in ("cosine similarity of tokens", "entropy of weights, nats")
    )
    assert [cell.strip() == "—" for cell in means] == [False, False, True]  # of a whole block
    assert not any(cell.strip() == "—" for cell in weights)


def test_the_command_line_translates_as_the_run_did(whole, capsys):
    """Its test sentences, one by one and in a batch: no sentence depends on the others."""
    cfg = load(whole)
    lines = {
        s: (whole / f"test.{s}.txt").read_text().splitlines() for s in ("source", "translation")
    }
    cpu = torch.device("cpu")
    assert translations(cfg, whole, lines["source"], cpu) == lines["translation"]
    alone = [translations(cfg, whole, [text], cpu)[0] for text in lines["source"][:3]]
    assert alone == lines["translation"][:3]
    for text, said in (("", "must have 1 to"), ("w " * 300, "it has 300")):
        with pytest.raises(BadInput, match=said):
            translations(cfg, whole, [text], cpu)


SHORT, LONG = {"en": "a", "de": "b"}, {"en": "a", "de": "a b c d e"}


@torch.no_grad()
def test_cross_attention_of_a_translation_is_shown(whole, tmp_path, monkeypatch):
    """Row t is what the decoder looks at while it writes token t of its own translation."""
    cfg, text = load(whole), "w1 w22 w3"
    (view,) = views([(whole, cfg)], text, None, "all")
    tokenizer, model = trained(cfg, whole, torch.device("cpu"))
    source = torch.tensor(encoded(cfg, tokenizer, text))[None]
    (said,) = translations(cfg, whole, [text], torch.device("cpu"))
    assert f'translated as "{said}"' in view.subject
    target = Pairs(source, torch.tensor([[BOS, *tokenizer.encode(said).ids]]))
    heads, rows, columns = cfg.arch.heads, len(view.tokens), len(view.source)
    assert view.weights.shape == (cfg.arch.layers, heads, rows, columns)
    torch.testing.assert_close(view.weights.sum(-1), torch.ones(cfg.arch.layers, heads, rows))
    assert columns == source.shape[1] and "w22" in "".join(view.source)
    block, entered = model.decoder[-1], []  # of the dot product
    block.cross.register_forward_pre_hook(lambda module, args: entered.append(args[:2]))
    model(target)
    x, k = entered[0]
    q = block.cross.q(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[0]
    torch.testing.assert_close(view.weights[-1], expected)
    panels = [axis for axis in plot([view]).axes if axis.images]
    assert len(panels) == cfg.arch.layers * heads
    assert [label.get_text() for label in panels[0].get_xticklabels()] == view.source
    assert [label.get_text() for label in panels[0].get_yticklabels()] == view.tokens


REFUSED = [
    ([{"en": "a", "de": ""}], [SHORT], "split train has no sentence pair that is not empty"),
    ([SHORT], [SHORT, {"en": "a", "de": " "}], "split validation, row 1 has an empty sentence"),
    ([SHORT, LONG], [LONG], "sequence_length=4: split validation has sentences of up to 6 tokens"),
    ([LONG], [SHORT], "sequence_length=4: split train has sentences of up to 6 tokens"),
]


@pytest.mark.parametrize(("train", "validation", "message"), REFUSED)
def test_rows_that_are_no_pairs_are_refused(train, validation, message, small, tmp_path):
    folder = tmp_path / "rows"
    splits = {"train": train, "validation": validation, "test": [SHORT]}
    write_rows(folder, "de-en", {name: {"translation": rows} for name, rows in splits.items()})
    words = ("data.sequence_length=4", "data.vocab_size=264")
    cfg = config(*small, f"data.path={folder}", *words)
    with pytest.raises(BadInput, match=message):
        build_data(cfg.data, 0, tmp_path / "cache")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("foo", "row 0: must hold a text for each language; it is 'foo'"),
        ({"de": 1, "en": 2}, "row 0: must hold text; it has 2"),
    ],
)
def test_sentences_that_are_no_text_are_refused(small, tmp_path, row, message):
    folder = tmp_path / "odd"
    write_rows(
        folder,
        "de-en",
        {split: {"translation": [row] * 9} for split in ("train", "validation", "test")},
    )
    with pytest.raises(BadInput, match=message):
        build_data(config(*small, f"data.path={folder}").data, 0, tmp_path / "cache")


def test_a_language_that_is_not_there_is_refused(small, tmp_path):
    with pytest.raises(BadInput, match="split train, row 0 has no language fr; it has de, en"):
        build_data(config(*small, "data.source=fr").data, 0, tmp_path / "cache")
