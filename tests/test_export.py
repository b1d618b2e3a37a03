"""Exported models: the logits of the best checkpoint bit for bit, and what is refused."""

import base64
import json
import math
import pickle
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import MODELS, config
from tokenizers import BertWordPieceTokenizer
from tokenizers.processors import BertProcessing

import attnlab
from attnlab import run as program
from attnlab.data.loader import build_data
from attnlab.errors import BadInput
from attnlab.export import bundle, load, write
from attnlab.inspection.generate import generate
from attnlab.models.transformer import Transformer
from attnlab.report.statistics import summarize
from attnlab.training import checkpoint

QUIET = ("scale=smoke", "logger=none", "runtime.progress=false", "runtime.device=cpu")
RUNS = {
    "text": ("data=pydocs", "model=neural_d2", "arch.positions=rotary"),
    "image": ("data=digits", "model=neural_d2"),
    "symbols": ("data=nt", "model=additive"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, cache):
    """kind -> (configuration, run folder, exported folder), each made when it is first asked
    for. The tokenizer of the text adds [CLS] and [SEP], which training leaves out.
    """
    root, made = tmp_path_factory.mktemp("exports"), {}

    def get(kind: str):
        if kind not in made:
            more = (f"data.tokenizer={bert(root)}",) if kind == "text" else ()
            cfg = config(*RUNS[kind], *more, *QUIET, f"runtime.cache={cache}")
            folder = root / "runs" / cfg.model.name / kind
            with torch.enable_grad():
                program.run(cfg, folder)
            write.export(cfg, folder, root / kind)
            made[kind] = cfg, folder, root / kind
        return made[kind]

    return get


def bert(folder: Path) -> Path:
    from pydoc_data.topics import topics

    tokenizer = BertWordPieceTokenizer(lowercase=False)
    tokenizer.train_from_iterator(list(topics.values()), 300, show_progress=False)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer._tokenizer.post_processor = BertProcessing(*ends)
    tokenizer.save(str(folder / "bert.json"))
    return folder / "bert.json"


def reference(cfg, run: Path) -> tuple[Transformer, torch.Tensor]:
    """The run's best checkpoint as the program itself loads it, and a batch of the test split."""
    data = build_data(cfg.data, cfg.seed, cfg.runtime.cache)
    model = program.build(cfg, data)
    checkpoint.load_weights(model, checkpoint.load_best(run / "checkpoints"), run)
    return model.eval(), data.evaluation("test").__getitems__([(0, 0), (0, 1)])[0]


@pytest.mark.parametrize("kind", RUNS)
@torch.no_grad()
def test_logits_are_those_of_the_best_checkpoint(exported, kind, tmp_path, monkeypatch):
    import transformers

    cfg, run, out = exported(kind)
    auto = getattr(transformers, write.CLASSES[cfg.arch.body][0])
    model, inputs = reference(cfg, run)
    logits = model(inputs)
    before, reseeded = torch.random.get_rng_state(), []
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
        assert torch.equal(attnlab.load(out)(inputs), logits)
    assert torch.equal(torch.random.get_rng_state(), before) and not reseeded
    theirs = auto.from_pretrained(out, trust_remote_code=True)
    assert not theirs.training and torch.equal(theirs(inputs).logits, logits)
    theirs.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert torch.equal(attnlab.load(tmp_path / "again")(inputs), logits)
    for dtype in (torch.bfloat16, "bfloat16"):
        half = auto.from_pretrained(out, trust_remote_code=True, dtype=dtype)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with pytest.raises(TypeError, match="device_map: not supported"):
        auto.from_pretrained(out, trust_remote_code=True, device_map="auto")


@torch.no_grad()
def test_transformers_reads_and_writes_text_as_the_run_does(exported):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    cfg, run, out = exported("text")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    inputs = tokenizer("The statement", return_tensors="pt")
    ids = inputs["input_ids"]
    more = cfg.data.sequence_length  # so that the window slides
    found = model.generate(**inputs, do_sample=False, max_new_tokens=more)[0, ids.shape[1] :]
    text = generate(cfg, run, "The statement", more, 0, 1, 0, torch.device("cpu"))
    lines = tokenizer.decode([*ids[0], *found]).split(" [SEP] ")
    assert "[CLS]" not in tokenizer.decode(ids[0])
    assert " ".join(lines).split() == text.split()

    padded = tokenizer(["The", "The statement is"], padding=True, return_tensors="pt")
    short = tokenizer("The", return_tensors="pt")["input_ids"]
    seen = model(**padded).logits
    torch.testing.assert_close(seen[:1, : short.shape[1]], model(short).logits)
    mask = padded["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padding may stand on the right only"):
        model(padded["input_ids"], attention_mask=mask)
    hole = torch.ones(1, 6, dtype=torch.long)
    hole[0, 2] = 0
    with pytest.raises(ValueError, match="padding may stand on the right only"):
        model(torch.zeros(1, 6, dtype=torch.long), attention_mask=hole)
    with pytest.raises(TypeError, match="position_ids: not supported"):
        model(ids, position_ids=torch.arange(ids.shape[1]))
    with pytest.raises(ValueError, match=f"at most {more}"):
        model(torch.zeros(1, more + 1, dtype=torch.long))
    loss = model(ids, labels=ids).loss
    logits = model(ids).logits
    assert loss == torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])


def test_a_trainer_of_transformers_loads_its_weights_again_and_divides_the_loss(
    exported, tmp_path
):
    """It reads the file that save_pretrained wrote by load_state_dict(strict=False), and leaves a
    micro-batch's loss as it is where a model says that it counts the targets of a whole step.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported("text")[2], trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = model.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"), False)
    assert not found.missing_keys and not found.unexpected_keys
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert model.accepts_loss_kwargs is False


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_rebuilt_from_its_json(name):
    cfg = config("data=nt", f"model={name}", *QUIET)
    sizes = cfg.data.sequence_length, cfg.data.vocab_size
    model = load.build(
        spec := write.spec_of(cfg, {"embedding.weight": torch.empty(sizes[1], 1),
                                    "head.weight": torch.empty(sizes[1], 1)})
    )  # fmt: skip
    content = json.loads(json.dumps({"attnlab": spec.model_dump()}))
    again = load.build(bundle.read_spec(content, "config.json"))
    assert str(again) == str(model) and spec.tokens == sizes[0]
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    shutil.copytree(exported("symbols")[2], tmp_path / "copy")
    return tmp_path / "copy"


def test_any_changed_file_is_refused_in_one_line(copy, tmp_path):
    from transformers import AutoModelForCausalLM

    files = sorted(p for p in copy.iterdir() if p.name != bundle.SUMS)
    assert {f.name for f in files} == {*bundle.NEEDED, "README.md"}
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        for changed in (
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            content[:-1],
            f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode() + content,
            None,
        ):
            file.unlink() if changed is None else file.write_bytes(changed)
            for way in [attnlab.load, lambda f: AutoModelForCausalLM.from_pretrained(
                f, trust_remote_code=True
            )][: 2 if file.name in (bundle.WEIGHTS, "README.md") else 1]:  # fmt: skip
                with pytest.raises(BadInput) as refused:
                    way(copy)
                assert str(refused.value).startswith(f"{file}: ")
                assert len(str(refused.value).splitlines()) == 1
        file.write_bytes(content)
    assert not (tmp_path / "ran").exists()
    attnlab.load(copy)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (lambda s: None, "no exported model there"),
        (lambda s: s.replace(bundle.WEIGHTS, "other"), "does not name model.safetensors"),
        (lambda s: s + f"{64 * '0'}  ../secret\n", "not the name of a file beside it"),
    ],
)
def test_sums_that_leave_something_out_are_refused(copy, sums, message):
    file = copy / bundle.SUMS
    content = sums(file.read_text())
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(BadInput, match=message):
        attnlab.load(copy)


def test_nothing_is_unpickled(copy, tmp_path):
    from transformers import AutoModelForCausalLM

    trap = pickle.dumps(Trap(tmp_path / "ran"))
    (copy / "pytorch_model.bin").write_bytes(trap)
    attnlab.load(copy)
    (copy / bundle.WEIGHTS).write_bytes(trap)
    bundle.seal(copy)  # as who has made it would
    for way in (attnlab.load, AutoModelForCausalLM.from_pretrained):
        more = {} if way is attnlab.load else {"trust_remote_code": True}
        with pytest.raises(BadInput, match="does not fit config"):
            way(copy, **more)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_version": 1}, "code version 1; this code is version"),
        ({"outputs": 7}, "model.safetensors: does not fit config.json: size mismatch"),
        ({"heads": 2}, "attnlab.heads: unknown key"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(copy, change, message):
    content = json.loads((copy / bundle.CONFIG).read_text())
    content["attnlab"] |= change
    (copy / bundle.CONFIG).write_text(json.dumps(content))
    bundle.seal(copy)
    with pytest.raises(BadInput, match=message) as refused:
        attnlab.load(copy)
    assert len(str(refused.value).splitlines()) == 1


def test_what_cannot_be_exported_leaves_nothing(exported, tmp_path):
    cfg, run, out = exported("symbols")
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(BadInput, match="is there already"):
        write.export(cfg, run, out)
    assert before == {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text('{"status": "interrupted"}')
    with pytest.raises(BadInput, match="is not finished"):
        write.export(cfg, tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "result.json").write_bytes((run / "result.json").read_bytes())
    (tmp_path / "run" / "checkpoints" / "best.pt").write_bytes(b"PK")
    with pytest.raises(BadInput, match="best"):
        write.export(cfg, tmp_path / "run", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(BadInput, match="neither a folder nor the id"):
        attnlab.load(tmp_path / "no" / "such")


def test_the_card_has_intervals_where_there_are_other_seeds(exported, tmp_path):
    cfg, run, out = exported("symbols")
    assert "This is a single run" in (out / "README.md").read_text()
    values = {0: 0.5, 1: 0.55, 2: 0.61}
    trial = {100: 0.9}  # of tune=lr: chooses a rate, and is no evidence
    for model, lower in ((cfg.model.name, 0.0), ("dot_product", 0.1)):
        for seed, value in (values | trial).items():
            folder = tmp_path / "nt" / model / f"seed{seed}"
            shutil.copytree(run, folder)
            text = (run / "config.yaml").read_text().replace("seed: 0\n", f"seed: {seed}\n")
            if seed in trial:
                text = text.replace("tuning: false", "tuning: true")
            if model == "dot_product":
                dot = config("data=nt", "model=dot_product", *QUIET)
                head, tail = text.split("model:\n")
                rest = tail[tail.index("data:\n") :]
                section = dot.model.model_dump()
                lines = "".join(f"  {key}: {value}\n" for key, value in section.items())
                text = f"{head}model:\n{lines}{rest}"
            (folder / "config.yaml").write_text(text)
            result = json.loads((run / "result.json").read_text())
            result["test/accuracy"] = value - lower - 0.001 * seed
            (folder / "result.json").write_text(json.dumps(result))
    write.export(cfg, tmp_path / "nt" / cfg.model.name / "seed0", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    expected = summarize([v - 0.001 * s for s, v in values.items()], within=(0, 1))
    interval = f"[{expected.low:.6g}, {expected.high:.6g}]"
    assert "Over 3 seeds (0, 1, 2)" in card and f"95 % interval {interval}" in card
    assert "paired by seed (n = 3" in card and "is 10 points of accuracy" in card
    for said in ("licence of the data", "`additive`", "| seed | 0 |", "what the text of arXiv"):
        assert said in card


def test_the_card_of_a_run_whose_measure_is_not_a_number(exported, tmp_path):
    cfg, run, _ = exported("symbols")
    shutil.copytree(run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text()) | {"test/accuracy": math.nan}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    write.export(cfg, tmp_path / "run", tmp_path / "out")
    assert "| test/accuracy | nan |" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_where_the_data_is(exported):
    """Only a hub id may stand under `datasets`: the hub looks it up."""
    for kind, where in (("symbols", "generated"), ("image", "embedded")):
        card = (exported(kind)[2] / "README.md").read_text()
        assert where in card and "datasets:" not in card


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a server that creates a repository and takes small files."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            return self.reply(
                {"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1"}
            )
        self.server.created.append(json.loads(body))
        return self.reply({"url": "https://huggingface.co/me/model", "id": "me/model"})

    def do_GET(self) -> None:
        self.reply({"id": "me/model", "sha": "0", "siblings": []})

    def reply(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


def test_push_uploads_the_folder(exported, monkeypatch):
    from huggingface_hub import constants

    _, _, out = exported("symbols")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.created = {}, []
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        write.push(out, "me/model")
        server.shutdown()
    assert server.created[0]["name"] == "model"
    assert server.files == {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="push=me/model: ") as refused:
        write.push(out, "me/model")
    assert len(str(refused.value).splitlines()) == 1
