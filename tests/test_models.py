"""The two bodies: published sizes, equal arms, positions, and every switch between paper and
code.
"""

import math

import pytest
import torch
from conftest import MODELS, config, model_of

from attnlab.models.positions import Positions, Rotary, sinusoid, sinusoid_released
from attnlab.models.transformer import parameter_counts

NEURAL = [name for name in MODELS if name.startswith("neural")]


def test_parameter_counts_of_the_released_language_models():
    """arXiv 2502.17206's code: 46.53 M for the baseline, 275 more at d' = 2, 2,753 at d' = 16."""
    count = {}
    for model in ("dot_product", "neural_d2", "neural_d16"):
        cfg = config(f"model={model}", "data=wikitext103", "scale=paper", "protocol=released")
        with torch.device("meta"):
            count[model] = parameter_counts(_bare(cfg, 28996, 28996, 1024))["params"]
    assert round(count["dot_product"] / 1e6, 2) == 46.53
    assert count["neural_d2"] - count["dot_product"] == 275
    assert count["neural_d16"] - count["dot_product"] == 2753


def _bare(cfg, *sizes):
    from attnlab.models.transformer import Transformer

    return Transformer(cfg.arch, cfg.model, *sizes)


def test_paper_sizes():
    vit = config("model=neural_d2", "data=cifar100")
    assert (vit.arch.layers, vit.arch.heads, vit.arch.width, vit.arch.patch_size) == (
        12,
        8,
        768,
        8,
    )
    assert (vit.data.image_size // vit.arch.patch_size) ** 2 + 1 == 785
    assert (vit.trainer.batch_size, vit.trainer.epochs) == (32, 350)
    lm = config("model=neural_d2", "data=wikitext103")
    assert (lm.arch.layers, lm.arch.heads, lm.arch.width) == (8, 8, 512)
    assert (lm.data.sequence_length, lm.trainer.batch_size) == (1024, 16)
    assert (lm.trainer.max_steps, lm.trainer.eval_every) == (1_000_000, 10_000)
    assert (lm.model.d_prime, lm.model.hidden, lm.model.neural_layers) == (2, [4], [0])


@pytest.mark.parametrize("data", ["pydocs", "digits"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "dot_product"])
@pytest.mark.parametrize("layers", ["[0]", "all"])
def test_arms_start_equal_but_for_attention(data, model, layers):
    """Same seed: every parameter the arms share is equal bit for bit; only mechanisms differ."""
    sizes = (300, 300, 64) if data == "pydocs" else (48, 10, 17)
    common = [f"data={data}", "scale=smoke", "seed=5"]
    key = config(f"model={model}").model.layers_key
    chosen = [f"model.{key}={layers}"]
    baseline = model_of(config("model=dot_product", *common), *sizes).state_dict()
    arm = model_of(config(f"model={model}", *chosen, *common), *sizes).state_dict()
    assert baseline.keys() <= arm.keys()
    assert all(torch.equal(baseline[key], arm[key]) for key in baseline)
    extra = arm.keys() - baseline.keys()
    plain = {"dot_product", "cog", "expressive", "uniform", "identity", "qk_norm"}
    assert bool(extra) == (model not in plain)
    own = ".ffn_extra." if model.startswith("dot_product_wide") else ".mechanism."
    assert all(own in key for key in extra)


FORMS = [
    *((name, ()) for name in MODELS if name not in (*NEURAL, "additive")),
    *(
        (name, (f"model.backend={backend}",))
        for name in (*NEURAL, "additive")
        for backend in ("eager", "chunked", "cpp")
    ),
]


@pytest.mark.parametrize("data", ["pydocs", "digits"])
@pytest.mark.parametrize(("model", "options"), FORMS, ids=str)
def test_a_model_cast_to_bfloat16_runs(data, model, options):
    """Forward and backward, near the same model in float32; with a bias in every projection."""
    section = config(f"model={model}").model
    if hasattr(section, section.layers_key):
        options = (*options, f"model.{section.layers_key}=all")
    if model in NEURAL and model != "neural_full":
        options = (*options, "model.projection_bias=true")
    cfg = config(f"data={data}", "scale=smoke", f"model={model}", "arch.dropout=0.0", *options)
    torch.manual_seed(0)
    if data == "pydocs":
        sizes, inputs = (300, 300, 64), torch.randint(0, 300, (2, 20))
    else:
        sizes, inputs = (48, 10, 17), torch.randn(2, 3, 16, 16).bfloat16()
    cast, exact = model_of(cfg, *sizes).bfloat16(), model_of(cfg, *sizes)
    exact.load_state_dict(cast.state_dict())
    logits = cast(inputs)
    wanted = exact(inputs.float() if inputs.is_floating_point() else inputs)
    assert logits.dtype == torch.bfloat16
    assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    logits.float().square().mean().backward()
    wanted.square().mean().backward()
    one, other = (
        torch.cat([p.grad.flatten().float() for p in m.parameters()]) for m in (cast, exact)
    )
    assert (one - other).norm() < 0.2 * other.norm()


def test_another_seed_is_another_start():
    one, two = (model_of(config("scale=smoke", f"seed={seed}"), 300, 300, 64) for seed in (0, 1))
    assert not torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.blocks[0].ffn[0].weight, one.blocks[1].ffn[0].weight)


@pytest.mark.parametrize("scale,score_network", [("mini", 153), ("paper", 275)])
@pytest.mark.parametrize("units", [1, 3])
def test_wide_ffn_has_more_parameters_than_the_score_network(scale, score_network, units):
    """2 W + 1 for each hidden unit: 257 in the miniature, 1,025 at the published size."""
    common = ["data=wikitext103", f"scale={scale}"]
    count = {}
    released = "protocol=released" if scale == "paper" else "protocol=paper"
    for model in ("dot_product", "neural_d2", "dot_product_wide"):
        more = [f"model.ffn_extra={units}"] if model == "dot_product_wide" else []
        cfg = config(f"model={model}", *common, released, *more)
        with torch.device("meta"):
            count[model] = parameter_counts(_bare(cfg, 4096, 4096, 1024))["params"]
    assert count["neural_d2"] - count["dot_product"] == score_network
    more = count["dot_product_wide"] - count["dot_product"]
    assert more == units * {"mini": 257, "paper": 1025}[scale] > score_network


@pytest.mark.parametrize(
    "words", [("scale=mini",), ("scale=paper",), ("experiment=rank_collapse",), ("arch.heads=2",)]
)
def test_a_wide_arm_for_dagpam_has_its_parameters_and_no_unit_to_spare(words):
    """In every layer, at any size: (head width)^2 + 2 for daGPAM, 2 W + 1 for a hidden unit."""
    count = {}
    for model in ("dot_product", "dagpam", "dot_product_wide_dagpam"):
        cfg = config(*words, f"model={model}")
        with torch.device("meta"):
            count[model] = parameter_counts(_bare(cfg, 300, 300, 64))["params"]
    layers, unit = cfg.arch.layers, 2 * cfg.arch.width + 1
    dagpam, wide = (count[m] - count["dot_product"] for m in list(count)[1:])
    assert dagpam == layers * (cfg.arch.head_width**2 + 2)
    assert dagpam <= wide < dagpam + layers * unit and wide % (layers * unit) == 0


def test_fixed_lambdas_are_no_trainable_parameters():
    fixed, trainable = (
        parameter_counts(_bare(config("model=dagpam", f"model.trainable={t}"), 300, 300, 64))
        for t in ("false", "true")
    )
    layers = config().arch.layers
    assert {key: trainable[key] - fixed[key] for key in fixed} == dict.fromkeys(fixed, 2 * layers)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_extra_units_are_more_columns_of_the_ffn(norm):
    """The first block is the one whose FFN has both matrices joined; the others have none."""
    cfg = config("model=dot_product_wide", "scale=smoke", "model.ffn_extra=5", f"arch.norm={norm}")
    model = model_of(cfg, 300, 300, 64).eval()
    block, other = model.blocks
    assert other.ffn_extra is None
    joined = torch.nn.Sequential(torch.nn.Linear(32, 69), torch.nn.ReLU(), torch.nn.Linear(69, 32))
    with torch.no_grad():
        joined[0].weight.copy_(torch.cat((block.ffn[0].weight, block.ffn_extra[0].weight)))
        joined[0].bias.copy_(torch.cat((block.ffn[0].bias, block.ffn_extra[0].bias)))
        joined[2].weight.copy_(torch.cat((block.ffn[3].weight, block.ffn_extra[2].weight), 1))
        joined[2].bias.copy_(block.ffn[3].bias)
    assert block.ffn_extra[2].weight.abs().max() <= 69**-0.5
    x = torch.randn(2, 7, 32)
    found = block(x)
    block.ffn, block.ffn_extra = joined, None
    torch.testing.assert_close(found, block(x))


def test_the_dropout_of_all_other_units_is_that_of_the_baseline():
    """Extra units that give 0 change nothing in training: they draw no random numbers."""
    losses = []
    for model in ("dot_product", "dot_product_wide"):
        cfg = config(f"model={model}", "scale=smoke", "arch.dropout=0.3")
        built = model_of(cfg, 300, 300, 64).train()
        if built.blocks[0].ffn_extra is not None:
            torch.nn.init.zeros_(built.blocks[0].ffn_extra[2].weight)
        torch.manual_seed(0)
        losses.append(built(torch.arange(40).view(2, 20)))
    assert torch.equal(*losses)


@pytest.mark.parametrize("model", ["dot_product", "neural_d2"])
def test_textbook_embedding_is_the_normal_one_divided_by_the_root_of_the_width(model):
    normal, textbook = (
        model_of(config(f"model={model}", "scale=smoke", f"arch.embedding_init={init}"),
                    300, 300, 64).state_dict()
        for init in ("normal", "textbook")
    )  # fmt: skip
    changed = [key for key in normal if not torch.equal(normal[key], textbook[key])]
    assert changed == ["embedding.weight"]
    torch.testing.assert_close(textbook[changed[0]] * 32**0.5, normal[changed[0]])


@pytest.mark.parametrize("data", ["pydocs", "digits"])
def test_embedding_norm_is_what_enters_the_first_block(data):
    """Mean 0 and variance 1 for every token, after dropout; all other weights start the same."""
    sizes = (300, 300, 64) if data == "pydocs" else (48, 10, 17)
    inputs = torch.arange(20).view(2, 10) if data == "pydocs" else torch.randn(2, 3, 16, 16)
    states, entered = [], []
    for norm in ("false", "true"):
        cfg = config(
            f"data={data}", "scale=smoke", f"arch.embedding_norm={norm}", "arch.dropout=0.3"
        )
        model = model_of(cfg, *sizes).train()
        states.append(model.state_dict())
        model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        model(inputs)
    without, with_norm = states
    assert with_norm.keys() - without.keys() == {"embedding_norm.weight", "embedding_norm.bias"}
    assert all(torch.equal(without[key], with_norm[key]) for key in without)
    bare, normed = entered
    assert bare.var(-1, correction=0).sub(1).abs().max() > 0.1
    assert normed.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(
        normed.var(-1, correction=0), torch.ones(normed.shape[:-1]), rtol=1e-3, atol=1e-3
    )


def test_released_switches():
    """Every model switch under 'what the released code does instead'."""
    lm = config("data=wikitext103", "model=neural_d2", "protocol=released")
    assert lm.model.hidden == [2, 1] and not lm.model.score_scale and lm.model.projection_bias
    assert lm.arch.positions == "sinusoidal_released" and lm.trainer.select_on == "test"
    assert lm.arch.embedding_residual == 2  # the arms of the released code differ here
    baseline = config("data=wikitext103", "model=dot_product", "protocol=released")
    assert baseline.arch.embedding_residual == 1
    d16 = config("data=wikitext103", "model=neural_d16", "protocol=released")
    assert d16.model.hidden == [16, 8]
    vit = config("data=cifar10", "model=neural_d2", "protocol=released")
    assert vit.model.d_prime == 3 and vit.arch.embedding_residual == 1
    assert vit.data.validation_size == 0 and vit.trainer.select_on == "test"
    paper = config("data=cifar10", "model=neural_d2")
    assert paper.model.d_prime == 2 and paper.data.validation_size == 5000
    assert paper.model.score_scale and not paper.model.projection_bias
    assert paper.arch.positions == "sinusoidal" and paper.arch.embedding_residual == 0


def test_sinusoids_entry_by_entry():
    textbook, released = sinusoid(50, 8), sinusoid_released(50, 8)
    for position in (0, 1, 49):
        for i in range(0, 8, 2):
            angle = position / 10000 ** (i / 8)
            assert textbook[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert textbook[position, i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
            sine = math.sin(position / 10000 ** (2 * i / 8))
            cosine = math.cos(position / 10000 ** ((2 * i + 1) / 8))
            assert released[position, i].item() == pytest.approx(sine, abs=1e-6)
            assert released[position, i + 1].item() == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("residual", [0, 1, 2])
def test_how_positions_are_added(residual):
    cfg = config("scale=smoke", f"arch.embedding_residual={residual}", "arch.dropout=0.0")
    x = torch.randn(2, 5, 32)
    expected = residual * x + math.sqrt(32) * x + sinusoid(5, 32)
    torch.testing.assert_close(Positions(cfg.arch, 64)(x), expected)


def test_patches_keep_pixels_in_reading_order():
    cfg = config("data=digits", "scale=smoke")
    model = model_of(cfg, 48, 10, 17)
    image = torch.arange(16 * 16).float().reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    patches = model.patches(image)
    assert patches.shape == (1, 16, 48)
    assert patches[0, 1, :4].tolist() == [4, 5, 6, 7]
    assert patches[0, 4, 0] == 4 * 16


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_language_model_sees_no_later_token(norm):
    cfg = config("scale=smoke", "model.neural_layers=all", f"arch.norm={norm}")
    model = model_of(cfg, 300, 300, 64).eval()
    ids = torch.randint(0, 300, (2, 20))
    later = ids.clone()
    later[:, 11:] = 7
    assert torch.equal(model(ids)[:, :11], model(later)[:, :11])


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi", "none"])
def test_a_model_reads_as_many_tokens_as_it_has_positions(positions):
    """Without a table of positions it reads any number."""
    cfg = config("scale=smoke", "model=dot_product", f"arch.positions={positions}")
    model = model_of(cfg, 9, 9, 6).eval()
    ids = torch.zeros(1, 7, dtype=torch.long)
    assert model(ids[:, :6]).shape == (1, 6, 9)
    if positions in ("alibi", "none"):
        assert model(ids).shape == (1, 7, 9)
    else:
        with pytest.raises(ValueError, match="7 tokens: the model has 6 positions"):
            model(ids)


def test_rotary_scores_depend_on_distance_only():
    """arXiv 2104.09864, eq 16, and against rotations written out for one pair of entries."""
    rotary = Rotary(50, 8)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = (rotary(x.expand(1, 1, 50, 8))[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.mT
    for distance in (-7, 0, 3):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert scores.diagonal(3)[0] != pytest.approx(scores.diagonal(0)[0].item(), abs=1e-3)
    angle = 13 / 10000 ** (2 / 8)
    expected = q[2] * math.cos(angle) - q[3] * math.sin(angle)
    assert turned_q[13, 2].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_rounds_16_bit_queries_once(dtype):
    """The rotation is exact to half a unit in the last place, as if it were done in float64."""
    rotary = Rotary(300, 8)
    x = torch.randn(1, 1, 300, 8).to(dtype)
    wanted = rotary(x.double())
    unit = torch.finfo(dtype).eps * wanted.abs()
    assert rotary(x).dtype == dtype
    assert torch.equal(Rotary(300, 8).to(dtype)(x), rotary(x))  # also in a model of 16 bits
    assert ((rotary(x).double() - wanted).abs() <= 0.501 * unit + 1e-7).all()


@pytest.mark.parametrize("data", ["pydocs", "digits"])
def test_rotary_makes_order_matter_in_every_layer(data):
    """Without positions a ViT does not see the order of its patches; with rotary ones it does."""
    tokens = torch.randn(1, 9, 32)
    swapped = tokens[:, [0, 2, 1, *range(3, 9)]]
    for positions, same in (("none", True), ("rotary", False)):
        cfg = config(
            f"data={data}", "scale=smoke", "model=dot_product", f"arch.positions={positions}"
        )
        model = model_of(cfg, 48, 48, 17).eval()
        for block in model.blocks:
            block.attention.causal = False
            outputs = [block(x)[0, 0] for x in (tokens, swapped)]
            assert torch.allclose(*outputs, atol=1e-6) == same


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 32), (3, 19, 19), (3, 32, 32), (1, 16, 16)])
def test_images_of_another_size_are_refused(shape):
    """Their patches would get the positions of others, or be cut off, and the logits be wrong."""
    model = model_of(config("data=digits", "scale=smoke"), 48, 10, 17)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\); got \(1, "):
        model(torch.zeros(1, *shape))
