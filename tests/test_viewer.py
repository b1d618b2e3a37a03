"""scripts/show_attention.py: maps that are the model's own, the pictures, the report with them."""

import base64
import io
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, config, model_of
from made_runs import Page
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits
from tokenizers import Tokenizer

from attnlab.config.compose import load
from attnlab.inspection.attention_maps import views
from attnlab.report import pictures
from attnlab.report.maps import plot
from attnlab.report.render import report
from attnlab.run import run
from attnlab.training.checkpoint import load_best

TEXT = "The statement is a list of names"
RUNS = {
    "lm": ("model=dot_product",),
    "dagpam": ("model=dagpam",),
    "vit": ("model=dot_product", "data=digits", "data.image_size=8", "arch.patch_size=2"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """Small runs."""
    root = tmp_path_factory.mktemp("trained")
    for name, overrides in RUNS.items():
        common = ("scale=smoke", "logger=none", f"runtime.cache={cache}")
        run(config(*common, *overrides), root / name)
    return {name: root / name for name in RUNS}


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of a run that may be changed."""

    def made(name: str, to: str, **values) -> Path:
        folder = tmp_path / "runs" / to
        shutil.copytree(runs[name], folder)
        stored = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in values.items():
            section, _, leaf = key.partition("__")
            stored[section][leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
        return folder

    return made


@pytest.fixture
def show(monkeypatch, capsys, tmp_path):
    """Run the script in this process; returns (exit code, stdout, stderr)."""

    def script_with(*words) -> tuple[int, str, str]:
        script = ROOT / "scripts" / "show_attention.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(script.parent))
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return script_with


def look(*folders, text=None, image=None, layers="all"):
    return views([(f, load(f)) for f in folders], text, image, layers)


def by_hand(model, x, layer, visible):
    """softmax(q k^T / sqrt(D)) of one layer, head by head; x: what enters the first layer."""
    for block in model.blocks[:layer]:
        x = block(x)
    attention = model.blocks[layer].attention
    q, k, _ = (x[0] @ attention.qkv.weight.T).chunk(3, dim=-1)
    maps = []
    for rows, columns in zip(q.split(16, -1), k.split(16, -1), strict=True):  # heads of width 16
        scores = (rows @ columns.T / 16**0.5).exp() * visible
        maps.append(scores / scores.sum(-1, keepdim=True))
    return torch.stack(maps)


@torch.no_grad()
def test_maps_of_a_text_are_causal_and_the_models_own(runs):
    (view,) = look(runs["lm"], text=TEXT)
    n = len(view.tokens)
    assert view.weights.shape == (2, 2, n, n) and view.weights.dtype == torch.float32
    assert view.tokens[0] == "The"
    assert "".join(view.tokens).replace("##", "") == TEXT.replace(" ", "")
    assert not view.weights.triu(1).any() and view.weights[..., 1:, 1].all()
    assert torch.allclose(view.weights.sum(-1), torch.ones(2, 2, n))
    tokenizer = Tokenizer.from_file(str(runs["lm"] / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(TEXT, add_special_tokens=False).ids)[None]
    size = tokenizer.get_vocab_size()
    model = model_of(view.cfg, size, size, 64).eval()
    model.load_state_dict(load_best(runs["lm"] / "checkpoints")["model"])
    x = model.positions(model.embedding(ids))
    for layer in (0, 1):
        expected = by_hand(model, x, layer, torch.ones(n, n).tril())
        assert torch.allclose(view.weights[layer], expected, atol=1e-6)
    (one,) = look(runs["lm"], text=TEXT, layers="1")
    assert one.layers == [1] and torch.equal(one.weights, view.weights[1:])


@torch.no_grad()
def test_maps_of_an_image_have_the_class_token_and_no_mask(runs):
    (view,) = look(runs["vit"], image=3)
    assert view.weights.shape == (2, 2, 17, 17) and view.weights.min() > 0
    assert torch.allclose(view.weights.sum(-1), torch.ones(2, 2, 17))
    pixels = torch.tensor(load_digits().images[5 * 3 + 4] / 16).float()  # every fifth is a test's
    assert torch.allclose(view.image, pixels[..., None].expand(8, 8, 3), atol=1 / 255)
    assert "test image 3 of digits" in view.subject
    model = model_of(view.cfg, 3 * 2**2, 10, 17).eval()
    model.load_state_dict(load_best(runs["vit"] / "checkpoints")["model"])
    image = (2 * view.image - 1).permute(2, 0, 1)[None]
    x = model.positions(model.cls(model.embedding(model.patches(image))))
    expected = by_hand(model, x, 1, torch.ones(17, 17))
    assert torch.allclose(view.weights[1], expected, atol=1e-6)
    assert not torch.equal(look(runs["vit"], image=4)[0].weights, view.weights)


def test_a_text_is_a_panel_for_every_layer_and_head(runs):
    view, other = look(runs["lm"], runs["dagpam"], text=TEXT)
    panels = [axis for axis in plot([view]).axes if axis.images]
    assert len(panels) == 2 * 2
    shown = panels[3].images[0]
    visible = np.tri(len(view.tokens), dtype=bool)
    assert np.array_equal(shown.get_array()[visible], view.weights[1, 1].numpy()[visible])
    assert np.ma.getmaskarray(shown.get_array())[~visible].all()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == view.tokens
    assert not panels[1].get_yticklabels()
    assert (shown.norm.vmin, shown.norm.vmax, shown.cmap.name) == (0, 1, "YlOrRd")

    assert other.weights.min() < 0
    panels = [axis for axis in plot([view, other]).axes if axis.images]
    for layer in (0, 1):  # of both runs together: one range, the same on both sides of 0
        row = panels[4 * layer : 4 * layer + 4]
        norms = {(p.images[0].norm.vmin, p.images[0].norm.vmax) for p in row}
        top = max(view.weights[layer].abs().max(), other.weights[layer].abs().max()).item()
        assert norms == {(-top, top)} and row[0].images[0].cmap.name == "RdBu_r"
        norm = row[0].images[0].norm
        assert (float(norm(0)), float(norm(top))) == (0.5, 1)


def test_an_image_is_two_panels_for_every_layer_and_head(runs):
    (view,) = look(runs["vit"], image=3, layers="1")
    picture, *panels = [axis for axis in plot([view]).axes if axis.images]
    assert np.array_equal(picture.images[0].get_array(), view.image.numpy())
    weights = view.weights[0].numpy()
    assert len(panels) == 2 + 2
    for head in (0, 1):
        token, mean = panels[head], panels[2 + head]
        assert np.array_equal(token.images[1].get_array().ravel(), weights[head, 0, 1:])
        assert np.allclose(mean.images[1].get_array().ravel(), weights[head].mean(0)[1:])
        assert token.get_title() == f"head {head}, self {weights[head, 0, 0]:.3f}"


def test_a_long_text_has_numbers_instead_of_tokens(runs):
    (view,) = look(runs["lm"], text="a " * 41)
    axis = next(axis for axis in plot([view]).axes if axis.images)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "20", "40"]


def test_a_picture_is_written_into_the_run_folder(copy, train):
    lm = copy("lm", "lm")
    code, out, err = train(f"run={lm}", f"text={TEXT}", script="scripts/show_attention.py")
    assert code == 0, err
    file = lm / "attention" / "the_statement_is_a_list_of_names.png"
    arrays = file.with_suffix(".npz")
    assert out == f"picture: {file}\narrays: {arrays}\n"
    assert sorted(file.parent.iterdir()) == [arrays, file]
    with Image.open(file) as image:
        image.load()
        assert len(image.getcolors(1 << 24)) > 10  # not blank
        assert image.text[pictures.ABOUT] == f'Attention of dot_product, seed 0: "{TEXT}"'


def test_two_runs_stand_side_by_side(runs, copy, show, tmp_path):
    dagpam, one, two = copy("dagpam", "dagpam"), tmp_path / "one.png", tmp_path / "new" / "2.png"
    both = (f"run={dagpam}", f"text={TEXT}", f"other={runs['lm']}")
    said = f"picture: {one}\narrays: {one.with_suffix('.npz')}\n"
    assert show(*both[:2], f"out={one}")[:2] == (0, said)
    assert show(*both, f"out={two}", "layers=0")[0] == 0
    with Image.open(one) as first, Image.open(two) as second:
        assert second.width > 1.6 * first.width and second.height < 0.7 * first.height
    assert not (dagpam / "attention").exists()
    assert show(*both)[0] == 0
    (file,) = (dagpam / "attention").glob("*.png")
    assert file.name == "the_statement_is_a_list_of_names_dot_product_seed0.png"
    ours, theirs = look(dagpam, runs["lm"], text=TEXT)
    with np.load(file.with_suffix(".npz")) as arrays:  # no pickled objects
        assert np.array_equal(arrays["weights"], ours.weights.numpy())
        assert np.array_equal(arrays["other_weights"], theirs.weights.numpy())
        assert arrays["layers"].tolist() == [0, 1] and arrays["tokens"].tolist() == ours.tokens


def test_two_images_stand_side_by_side(runs, copy, show):
    vit = copy("vit", "vit")
    code, out, err = show(f"run={vit}", "image=12", f"other={runs['vit']}")
    assert code == 0, err
    assert out.splitlines()[0] == f"picture: {vit}/attention/image_12_dot_product_seed0.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run={lm}",), "text=, image=: give one of them"),
        (("run={lm}", "text=a", "image=1"), "text=, image=: give one of them"),
        (("run={lm}", "image=1"), "reads text; give text="),
        (("run={vit}", "text=a"), "reads images; give image="),
        (("run={lm}", "text= "), "is 0 tokens; must be from 1 to data.sequence_length=64"),
        (("run={lm}", "text=" + 65 * "a "), "is 65 tokens; must be from 1 to data.sequence_len"),
        (("run={vit}", "image=-1"), "image=-1: must be from 0 to 358"),
        (("run={vit}", "image=359"), "image=359: must be from 0 to 358"),
        (("run={vit}", "image=one"), "image=one: must be a whole number"),
        (("run={lm}", "text=a", "layers=9"), "layers=9: must be all, or some of 0 to 1"),
        (("run={lm}", "text=a", "layers=0,"), "layers=0,: must be all, or some of 0 to 1"),
        (("run={lm}", "text=a", "layers=-1"), "layers=-1: must be all, or some of 0 to 1"),
        (("run={lm}", "text=a", "out=a.pdf"), "out=a.pdf: must end in .png"),
        (("run={lm}", "text=a", "out={lm}/config.yaml/a.png"), "cannot be written"),
        (("run={lm}", "text=a", "device=tpu"), "device=tpu: must be same"),
        (("run=nowhere", "text=a"), "run=nowhere: no run folder there"),
        (("run={lm}", "text=a", "other=nowhere"), "other=nowhere: no run folder there"),
        (("run={lm}", "text=a", "other={vit}"), "vit: arch.body is vit, but lm in run="),
        (("run={bare}", "text=a"), "data=pydocs is neither images nor text with a tokenizer"),
        (("run={symbols}", "text=a"), "data=nt is neither images nor text with a tokenizer"),
        (("run={lm}", "text=a", "other={words}"), "its tokenizer.json is not the one of run="),
        (("run={vit}", "image=1", "other={big}"), "big: data.image_size is 16, but 8 in run="),
        (("run={vit}", "image=1", "other={cifar}"), "data.name is cifar10, but digits in run="),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(runs, copy, show, tmp_path, words, message):
    made = {}
    if "{bare}" in words[0]:
        made["bare"] = copy("lm", "bare")
        (made["bare"] / "tokenizer.json").unlink()
    if "{symbols}" in words[0]:
        made["symbols"] = tmp_path / "symbols"
        made["symbols"].mkdir()
        symbols = config("data=nt", "scale=smoke").model_dump()
        (made["symbols"] / "config.yaml").write_text(yaml.safe_dump(symbols))
    if "other={words}" in words:
        made["words"] = copy("lm", "words")
        file = made["words"] / "tokenizer.json"
        file.write_text(file.read_text().replace("statement", "tnemetats"))
    if "other={big}" in words:
        made["big"] = copy("vit", "big", data__image_size=16)
    if "other={cifar}" in words:
        made["cifar"] = copy("vit", "cifar", data__name="cifar10", data__path="x/y/z")
    folders = [tmp_path, *runs.values()]
    before = [sorted(folder.rglob("*")) for folder in folders]
    code, out, err = show(*(word.format(**runs, **made) for word in words))
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err
    assert [sorted(folder.rglob("*")) for folder in folders] == before


def test_the_report_shows_pictures_in_their_section(copy, show, tmp_path):
    lm, vit = copy("lm", "lm"), copy("vit", "vit")
    for words in ((f"run={lm}", "text=a </figure><img src=x> [b](c)"), (f"run={vit}", "image=0")):
        assert show(*words)[0] == 0
    attention = lm / "attention"
    (whole,) = attention.glob("*.png")
    (attention / "torn.png").write_bytes(whole.read_bytes()[:5000])
    (attention / "config.yaml").write_text((lm / "config.yaml").read_text())  # no run of its own
    out = tmp_path / "report"
    report(tmp_path / "runs", out)
    text, page = (out / "report.md").read_text(), Page(out / "index.html")
    assert "2 runs: 2 finished" in text
    assert page.tags.count("img") == 2 and len(page.resources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.resources)
    shown = {base64.b64decode(source.partition(",")[2]) for source in page.resources}
    (image,) = (vit / "attention").glob("*.png")
    assert shown == {whole.read_bytes(), image.read_bytes()}
    name = "figures/attention_pydocs_smoke_paper_1.png"
    assert (out / name).read_bytes() == whole.read_bytes() and name in page.links
    caption = 'Attention of dot_product, seed 0: "a </figure><img src=x> [b](c)". Run lm.'
    assert caption in page.text
    digits, pydocs = text.index("## digits"), text.index("## pydocs")
    assert pydocs < text.index(f"]({name})") and digits < text.index("Run vit.") < pydocs
    assert r"\<img src=x> \[b\](c)" in text
    assert "A picture of attention is missing" in text and "torn.png cannot be read" in page.text


def test_a_report_shows_few_pictures_and_small_ones(copy, tmp_path):
    lm = copy("lm", "lm")
    (lm / "attention").mkdir()
    for number in range(pictures.MOST + 2):
        about = PngImagePlugin.PngInfo()
        about.add_text(pictures.ABOUT, f"picture {number}")
        size = (3000, 1500) if number == 0 else (30, 15)
        Image.new("RGB", size).save(lm / "attention" / f"{number:02}.png", pnginfo=about)
    report(tmp_path / "runs", tmp_path / "report")
    page = Page(tmp_path / "report" / "index.html")
    assert len(page.resources) == pictures.MOST
    assert f"picture {pictures.MOST - 1}. Run lm." in page.text
    assert f"picture {pictures.MOST}." not in page.text and "2 more are not shown" in page.text
    large = io.BytesIO(base64.b64decode(page.resources[0].partition(",")[2]))
    with Image.open(large) as image:
        assert image.size == (2000, 1000)
    with Image.open(
        tmp_path / "report" / "figures" / "attention_pydocs_smoke_paper_1.png"
    ) as file:
        assert file.size == (3000, 1500)
