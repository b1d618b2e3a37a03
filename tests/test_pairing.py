"""Arms are equal but for attention: what compares them, and what it says."""

import pytest
import torch
import yaml
from conftest import MODELS, config, model_of

from attnlab.commands.compare_arms import configuration
from attnlab.sweeps.jobs import compose_jobs
from attnlab.sweeps.pairing import differences, model_differences


@pytest.mark.parametrize(
    "change,where",
    [
        ("arch.embedding_scale=false", "arch.embedding_scale"),
        ("arch.positions=learned", "positions.learned.weight"),
        ("arch.dropout=0.2", "blocks.0.dropout (module)"),
        ("seed=1", "order of the training samples"),
        ("seed=1", "head.weight"),
        ("trainer.lr=0.1", "trainer.lr"),
        ("arch.embedding_residual=1", "arch.embedding_residual"),
        ("arch.qk_norm=rms", "arch.qk_norm"),
        ("arch.embedding_init=textbook", "embedding.weight"),
        ("arch.embedding_norm=true", "embedding_norm.weight"),
    ],
)
def test_a_difference_beside_attention_is_found(change, where):
    base = config("scale=smoke", "model=dot_product")
    found = dict(differences(base, config("scale=smoke", "model=neural_d2", change)))
    assert where in found


@pytest.mark.parametrize("data", ["pydocs", "digits"])
def test_shipped_arms_differ_in_attention_only(data):
    options = ("scale=smoke", f"data={data}")
    base = config("model=dot_product", *options)
    for model in (name for name in MODELS if name != "dot_product"):
        assert list(differences(base, config(f"model={model}", *options))) == []


def test_another_initial_value_is_found():
    a, b = (model_of(config("scale=smoke"), 64, 64, 64) for _ in range(2))
    with torch.no_grad():
        b.blocks[1].ffn[0].weight[3, 4] += 1e-7
        b.blocks[0].attention.mechanism.score_network[0].weight.zero_()  # attention's own affair
    assert list(model_differences(a, b)) == [("blocks.1.ffn.0.weight", "not the same values")]


def test_the_authors_own_pair_is_refused(start):
    old = ("arch.positions=learned", "arch.embedding_scale=false", "arch.embedding_residual=0")
    pair = (
        "model=dot_product protocol=released",
        " ".join(("model=neural_d2", "protocol=released", *old)),
    )
    process = start(*pair, script="scripts/compare_arms.py")
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "OTHER      arch.positions: sinusoidal_released | learned" in out


def test_a_misspelt_arm_is_one_line(start):
    words = ("model=dot_product", "model=nueral_d2")
    _, err = (process := start(*words, script="scripts/compare_arms.py")).communicate(timeout=900)
    assert process.returncode == 2 and "did you mean neural_d2?" in err
    assert err.count("\n") == 1


def test_an_arm_may_be_a_run_folder_of_any_name(tmp_path):
    (job,) = compose_jobs([["data=nt", "scale=smoke", f"runtime.output_root='{tmp_path}/a=b'"]])
    job.path.mkdir(parents=True)
    (job.path / "config.yaml").write_text(yaml.safe_dump(job.cfg.model_dump()))
    assert configuration(str(job.path)) == job.cfg


def test_an_arm_may_have_values_with_blanks():
    cfg = configuration(
        "model=neural_d2 data=pydocs data.path='a folder' model.neural_layers=[0, 1]"
    )
    assert (cfg.data.path, cfg.model.neural_layers) == ("a folder", [0, 1])
