"""Bad input stops at once with one line a problem; a configuration always gets the same folder."""

import itertools

import pytest
import yaml
from conftest import MODELS, config
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab import cli
from attnlab.config import compose
from attnlab.config.messages import known_keys, unknown_key
from attnlab.config.schema import ADDED_TO
from attnlab.data.loader import build_data
from attnlab.errors import BadInput

DATA = sorted(p.stem for p in (compose.CONFIGS / "data").glob("*.yaml"))


SETTINGS = list(itertools.product(["paper", "mini", "smoke"], ["paper", "released"]))


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=map("-".join, SETTINGS))
def test_shipped_combinations_are_valid(number):
    """Every model and every data set under every scale and protocol, each time in other pairs."""
    scale, protocol = SETTINGS[number]
    for i in range(max(len(MODELS), len(DATA))):
        model, data = MODELS[i % len(MODELS)], DATA[(i + number) % len(DATA)]
        own = ["data.path=x/own"] if data in ("text", "images", "translation") else []
        if model == "identity" and data in ("iwslt14", "multi30k", "translation"):
            own.append("arch.attentions=[encoder,decoder]")  # it has no place in the third
        cfg = config(
            f"data={data}", f"model={model}", f"scale={scale}", f"protocol={protocol}", *own
        )
        chosen = (cfg.scale, cfg.protocol, cfg.data.name, cfg.model.name)
        name = "own" if "data.path=x/own" in own else data
        assert chosen == (scale, protocol, name, model)


BAD = [
    ("model=nueral_d2", "model=nueral_d2: unknown model; did you mean neural_d2?"),
    ("data=cifar", "did you mean cifar10?"),
    ("model.dprim=2", "model.dprim: unknown key; did you mean model.d_prime?"),
    ("+model.dprim=2", "model.dprim: unknown key; did you mean model.d_prime?"),
    ("+switches.x=1", "+switches.x=1: protocol sets the switches; set keys"),
    ("size=smoke", "size=smoke: follows from data and scale; set scale"),
    ("protocol=[paper,released]", "protocol=[paper,released]: must be one; for a sweep, -m"),
    ("trainer.patch_decay=false", "trainer.patch_decay=false: arch.body=lm embeds no patches"),
    ("launcher=joblib", "launcher=joblib: needs a sweep (-m); this is one run"),
    ("~model.mechanism", "~model.mechanism: cannot be left out"),
    ("~model.foo", "model.foo: unknown key"),
    ("lr=3", "lr: unknown key; did you mean trainer.lr?"),
    ("model.d_prime=0", "model.d_prime=0: must be greater than or equal to 1"),
    ("model.d_prime=1.5", "model.d_prime=1.5: must be a valid integer"),
    ("model.d_prime=33", "must be at most the head width arch.width / arch.heads = 32"),
    ("data.name=a/b", "must be up to 64 letters, digits, _, - and ., the first no ."),
    ("runtime.output_root=", "runtime.output_root=: must not be empty"),
    ("hydra.sweep.dir=x", "hydra.sweep.dir: runtime.output_root=<folder> says where runs lie"),
    ("model.hidden=[]", "model.hidden=[]: must have at least 1 item"),
    ("model.hidden=[4,0]", "model.hidden.1=0: must be greater than or equal to 1"),
    ("model.neural_layers=[4]", "arch.layers=4 allows 0 to 3, all or inner"),
    ("model.activation=rleu", "did you mean relu?"),
    ("model=cog model.mechanism=dagpm", "did you mean dagpam?"),
    ("model=cog model.layers=inner arch.layers=2", "arch.layers=2 has no inner layers"),
    ("arch.positions=rotary arch.width=36", "the head width arch.width / arch.heads must be even"),
    ("arch.heads=7", "arch.width=128: must be a multiple of arch.heads=7"),
    ("arch.layers=true", "arch.layers=true: must be a valid integer"),
    ("trainer.lr=-1", "trainer.lr=-1: must be greater than 0"),
    ("trainer.lr=nan", "trainer.lr=nan: must be a finite number"),
    ("trainer.lr=abc", "trainer.lr=abc: must be a valid number"),
    ("trainer.micro_batch_size=3", "must be a multiple of trainer.micro_batch_size=3"),
    ("data=multi30k trainer.micro_batch_size=2", "must be 1 for translation, whose samples are"),
    ("data=multi30k data.target=ja", "BLEU of this language is measured with a package"),
    ("trainer.warmup_steps=9999", "must be at most trainer.max_steps=600"),
    ("trainer.schedule=step", "trainer.schedule=step needs some"),
    ("model=neural_full model.projection_bias=true", "has no projection"),
    ("hydra.mode=MULTIRUN hydra.run.dir=x seed=0,1", "hydra.run.dir: the runs of a sweep have"),
    ("hydra.run.dir=/dev/null/x", "/dev/null is not a writable folder"),
    ("seed=", "seed=: must be a valid integer"),
    ("seed=0,1", "add -m for a sweep"),
    ("data=text", "data.path=null: text data needs a hub id or a local folder"),
    ("data=images", "data.path=null: image data needs a hub id or a local folder"),
    ("data=images data.path=x data.test_size=1.5", "must be a whole number, or a share below 1"),
    ("data=images data.path=x data.test_size=0", "data.test_size=0: must be greater than 0"),
    ("data=text data.path=x data.test_size=1", "data.test_size=1: must be less than 1"),
    (f"data=text data.path={'x' * 300}", "File name too long"),
    ("data.eval_stride=4096", "must be at most data.sequence_length=128"),
    ("data=digits arch.patch_size=3", "must be a multiple of arch.patch_size=3"),
    ("data=digits data.validation_size=0", "needs held-out images"),
    ("data=digits arch.embedding_init=textbook", "arch.embedding_init=textbook: a vit embeds"),
    ("arch.qk_norm=rsm", "did you mean rms?"),
    ("trainer.lr='[x'", "trainer.lr=[x: must be a valid number"),
    ("arch.layers='2'", "arch.layers='2': must be a valid integer"),
    ("runtime.device=gpu", "did you mean cuda?"),
    ("arch.embedding_norm=1", "arch.embedding_norm=1: must be true or false"),
    ("model=dot_product_wide model.ffn_extra=0", "model.ffn_extra=0: must be greater than or"),
    ("model=qk_norm model.layers=[4]", "arch.layers=4 allows 0 to 3, all or inner"),
    ("model=dot_product model.d_prime=3", "model.d_prime: unknown key for this choice of model"),
    ("model.layers=[0]", "did you mean model.neural_layers?; it has name, mechanism, neural_l"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_override_is_one_clear_line(overrides, message):
    with pytest.raises(BadInput) as error:
        cli.check_overrides(overrides.split())
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_problems_at_once_and_nothing_touched(train, tmp_path):
    code, out, err = train("model=nueral_d2", "seed=-1", "model.dprim=3", "hydra.run.dir=here")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 3 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=glob(*)", "model=glob(*): cannot be listed"),
        ("seed=interval(0,1)", "seed=interval(0,1): cannot be listed"),
        ("seed=range(1,10,0)", "range() arg 3 must not be zero"),
        ("seed=range(10,1)", "the sweep has no jobs"),
        ("experiment=table1,table3", "experiment=table1,table3: must be one"),
        ("hydra.job.chdir=true", "hydra.job.chdir: a run stays in the folder"),
        ("hydra.sweeper.max_batch_size=1", "hydra.sweeper.max_batch_size: launcher=joblib"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(overrides, message):
    with pytest.raises(BadInput) as error:
        cli.check_overrides(overrides.split(), sweep=True)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir=/nowhere"], "--config-dir: there is one configuration"),
        (["--cfg", "job", "-m", "seed=0"], "--cfg: shows one run"),
        (["--cfg", "job", "seed=0,1"], "--cfg: shows one run"),
        (["--cfg", "job", "experiment=table1"], "--cfg: shows one run; hydra.mode=RUN makes one"),
    ],
)
def test_an_option_of_hydra_that_has_no_use_is_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    with pytest.raises(SystemExit) as ended:
        cli.guard(lambda: None)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(f"error: {message}")


def test_empty_folders_that_were_there_stay(train, tmp_path):
    code, _, err = train("data=text", "data.path=nope", f"hydra.run.dir={tmp_path}/new/run")
    assert code == 2 and "nope" in err and list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    code, _, _ = train("data=text", "data.path=nope", f"hydra.run.dir={tmp_path}/mine/new/run")
    assert code == 2 and [p.name for p in tmp_path.rglob("*")] == ["mine"]
    data = config("data=text", "data.path=nope").data
    with pytest.raises(BadInput, match="nope"):
        build_data(data, 0, tmp_path / "mine" / "new" / "cache")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["data=mqar", "data.power=500"], "data.power=500: must be less than or equal to 10"),
        (["trainer.drop_factor=1e200"], "drop_factor=1e+200: must be less than or equal to 1"),
        (["data=multi30k", "data.length_penalty=500"], "must be less than or equal to 10"),
        (["hydra.run.dir='~/run'"], "write the whole path"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused(typed, said, train, tmp_path):
    code, _, err = train(*typed)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_may_be_meant_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config("runtime.output_root='~/runs'").folder.startswith(f"{tmp_path}/runs/")


def test_a_sweep_is_checked_before_its_first_job(train, tmp_path):
    code, _, err = train("-m", "model=dot_product,neural_d2", "seed=0,-1", "scale=smoke")
    assert code == 2 and err.splitlines() == ["error: seed=-1: must be greater than or equal to 0"]
    assert list(tmp_path.iterdir()) == []


def test_experiment_is_a_sweep_over_arms():
    words = ["experiment=table1", "seed=0,1", "scale=smoke"]
    assert cli.check_overrides(words)
    models = {config(*job).model.name for job in cli.jobs(words)}
    assert models == {"dot_product", "neural_full", "neural_d16", "neural_d2"}
    with pytest.raises(BadInput) as error:
        cli.check_overrides(["experiment=table1", "seed=0,-1", "scale=smoke"])
    assert str(error.value) == "seed=-1: must be greater than or equal to 0"


def test_cfg_shows_values_and_runs_nothing(train, tmp_path):
    code, out, _ = train("--cfg", "job", "protocol=released")
    assert code == 0 and "sinusoidal_released" in out and "${" not in out
    assert list(tmp_path.iterdir()) == []


def test_same_configuration_same_folder():
    base = config()
    for same in ("runtime.workers=3", "logger=none", "runtime.device=cpu"):
        assert config(same).folder == base.folder
    others = ["seed=1", "trainer.lr=0.1", "model=dot_product", "protocol=released", "scale=smoke"]
    assert len({config(o).folder for o in others} | {base.folder}) == len(others) + 1


@pytest.mark.parametrize(
    ("model", "hash"), [("expressive", "fae07676"), ("dot_product_wide", "abf8bca1")]
)
def test_a_key_of_one_mechanism_that_came_later_leaves_older_runs_as_they_were(
    model, hash, tmp_path
):
    """Their folders lack it, and are read as what they were; no other mechanism gets it."""
    cfg = config("data=nt", "scale=smoke", f"model={model}")
    assert cfg.hash == hash  # before the keys came
    stored = cfg.model_dump()
    for key in ADDED_TO["model.mechanism"][model]:
        del stored["model"][key.removeprefix("model.")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert compose.load(tmp_path) == cfg
    other = config("data=nt", "scale=smoke", "model=dagpam")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(other.model_dump()))
    assert compose.load(tmp_path) == other
    newer = {"expressive": "model.temperature=2.0", "dot_product_wide": "model.ffn_layers=all"}
    assert config("data=nt", "scale=smoke", f"model={model}", newer[model]).hash != hash


@settings(max_examples=300)
@given(st.sampled_from(sorted(known_keys())), st.data())
def test_a_misspelt_key_is_told_a_right_name(key, data):
    """One letter dropped: the message names the key, or one that ends alike."""
    at = data.draw(st.integers(0, len(key) - 1))
    wrong = key[:at] + key[at + 1 :]
    if wrong:
        named = unknown_key(wrong).split("did you mean ")
        found = wrong if wrong in known_keys() else named[1].removesuffix("?")
        ends = {name.rpartition(".")[2] for name in (key, found)}
        assert found in known_keys() and (len(ends) == 1 or ends == {"model", "mode"})
