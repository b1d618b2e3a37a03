"""Neural Attention in models of transformers, made from configurations without a download."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from transformers import (
    BertConfig,
    BertForMaskedLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from attnlab.errors import BadInput
from attnlab.integrations.transformers import NeuralAttentionMixin


class NeuralGPT2(NeuralAttentionMixin, GPT2LMHeadModel):
    pass


class NeuralLlama(NeuralAttentionMixin, LlamaForCausalLM):
    pass


class NeuralViT(NeuralAttentionMixin, ViTForImageClassification):
    pass


class NeuralBert(NeuralAttentionMixin, BertForMaskedLM):
    pass


TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
# Larger weights than usual, so that attention makes a difference before training.
SIZE = {
    "initializer_range": 0.2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
FFN = {"intermediate_size": 64}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
GPT2 = {**TEXT, **SIZE, **NO_DROPOUT, "n_positions": 32}
LLAMA = {**TEXT, **SIZE, **FFN, "num_key_value_heads": 2}
VIT = {**SIZE, **FFN, "image_size": 16, "patch_size": 4, "num_labels": 5}
BERT = {**TEXT, **SIZE, **FFN, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def gpt2(**options):
    return built(NeuralGPT2, GPT2Config, GPT2, **options)


def built(model, config, sizes, layers=(0,), **options):
    torch.manual_seed(0)
    return model(config(**sizes, neural_attention={"neural_layers": list(layers), **options}))


def losses(model, inputs, steps=50):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def batch():
    """Token ids, and a mask that pads the second row on the left and the third on the right."""
    ids = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[2, 12:] = 0
    return ids, mask


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_training_loses_the_same_by_every_backend(kind):
    """50 steps with Neural Attention in layer 0, in a text model with padding."""
    torch.manual_seed(1)
    ids, mask = batch()
    images = {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.arange(4)}
    text = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask > 0, -100)}
    inputs, make = {
        "gpt2": (text, gpt2),
        "vit": (images, lambda **how: built(NeuralViT, ViTConfig, VIT, **how)),
    }[kind]
    found = {
        name: list(losses(make(backend=name), inputs)) for name in ("eager", "chunked", "cpp")
    }
    assert found["eager"][-1] < found["eager"][0] - 0.5
    for name in ("chunked", "cpp"):
        assert found[name] == pytest.approx(found["eager"], rel=1e-5, abs=1e-5)


def test_score_networks_are_trained_saved_and_loaded(tmp_path):
    model = gpt2()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    ids, _ = batch()
    list(losses(model, {"input_ids": ids, "labels": ids}, steps=1))
    mine = [name for name in before if "neural_attention" in name]
    assert mine[0] == "transformer.h.0.attn.neural_attention.project_q.weight"
    changed = [name for name in mine if not torch.equal(before[name], model.state_dict()[name])]
    assert len(mine) == 6 and changed == mine
    model.eval().save_pretrained(tmp_path)
    again = NeuralGPT2.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_dot_product_model_is_a_start(tmp_path):
    """Its weights are loaded, and score networks start as those of a new model."""
    GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(tmp_path)
    model = NeuralGPT2.from_pretrained(tmp_path, config=gpt2().config)
    same = GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[name], x) for name, x in same.items())
    score = model.transformer.h[0].attn.neural_attention
    for layer in (score.project_q, score.project_k, *score.score_network):
        bound = layer.weight.shape[-1] ** -0.5
        assert layer.weight.std() > bound / 10 and layer.weight.abs().max() <= bound


@pytest.mark.parametrize("backend", ["eager", "chunked", "cpp"])
@pytest.mark.parametrize("layers", [[0], [1], [0, 1]], ids=str)
def test_padding_changes_nothing_else(layers, backend):
    """Real tokens are as they are alone, whatever the padding contains."""
    model = gpt2(layers=layers, backend=backend).eval()
    ids, mask = batch()
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    other = ids.where(mask > 0, 7)
    with torch.no_grad():
        found = [model(x, attention_mask=mask, position_ids=position).logits for x in (ids, other)]
        for row, (logits, kept) in enumerate(zip(found[0], mask.bool(), strict=True)):
            alone = model(ids[row][None, kept]).logits[0]
            torch.testing.assert_close(logits[kept], alone, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1][row][kept], alone, rtol=1e-5, atol=1e-5)


def test_padding_is_not_seen_by_an_encoder():
    model = built(NeuralBert, BertConfig, BERT, backend="chunked").eval()
    ids, mask = batch()
    with torch.no_grad():
        found, other = (
            model(x, attention_mask=mask).logits for x in (ids, ids.where(mask > 0, 7))
        )
        torch.testing.assert_close(found[mask > 0], other[mask > 0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found[1], model(ids).logits[1], atol=1e-3)


@pytest.mark.parametrize("cut", [16, 9])
def test_other_layers_are_those_of_transformers(cut):
    """Hidden states before the layer with Neural Attention, of all tokens at once or of some that
    follow a cache.
    """
    model = gpt2(layers=[1]).eval()
    plain = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    ids, mask = batch()
    found = []
    for m in (model, plain):
        cache, states = None, []
        for stop in sorted({cut, 16}):
            past = cache.get_seq_length() if cache else 0
            more = {"attention_mask": mask[:, :stop], "output_hidden_states": True}
            with torch.no_grad():
                out = m(ids[:, past:stop], cache=cache, use_cache=True, **more)
            cache = out.cache
            states.append(out.hidden_states[1])
        found.append(torch.cat(states, 1)[mask > 0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=str)
def test_cached_generation_gives_the_uncached_tokens(model, options):
    """Prompts of two lengths, padded on the left; llama's queries share keys."""
    model = gpt2() if model == "gpt2" else built(NeuralLlama, LlamaConfig, LLAMA)
    model = model.double().eval()
    ids, mask = (x[:2] for x in batch())
    found = []
    for how in (options, {"use_cache": False}):
        torch.manual_seed(0)  # sampled: the likeliest token would soon repeat itself
        sampled = {"do_sample": True, "attention_mask": mask, "max_new_tokens": 12}
        found.append(model.generate(ids, **sampled, **how))
    assert torch.equal(*found) and len(set(found[0][0, 16:].tolist())) > 5


def test_masks_that_a_backend_cannot_serve_are_refused():
    ids, _ = batch()
    window = torch.ones(3, 1, 16, 16).tril().triu(-3)
    model = gpt2(backend="chunked")
    with pytest.raises(BadInput, match="backend=chunked: a mask that differs between queries"):
        model(ids, attention_mask=window.bool())
    with pytest.raises(ValueError, match="mask must be boolean"):
        model(ids, attention_mask=window.log())


def test_sequences_in_one_row_do_not_see_each_other():
    """transformers recognises them by their positions; eager serves the mask, chunked refuses."""
    ids, _ = batch()
    packed = {"position_ids": torch.arange(16)[None] % 8, "use_cache": False}
    model = gpt2(backend="eager").eval()
    with torch.no_grad():
        together, alone = model(ids, **packed).logits, model(ids[:, 8:]).logits
    torch.testing.assert_close(together[:, 8:], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match="differs between queries"):
        gpt2(backend="chunked")(ids, **packed)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (None, "the configuration must say where"),
        ({"d_prime": 2}, "the configuration must say where"),
        ({"neural_layers": [2]}, "neural_layers=[2]: must be all, inner, or a list"),
        ({"neural_layers": "inner"}, "neural_layers=inner: must be all"),
        ({"neural_layers": [0], "dprime": 2}, "dprime: unknown key; did you mean d_prime?"),
        ({"neural_layers": [0], "backend": "cp"}, "neural_attention.backend=cp: must be"),
    ],
)
def test_a_wrong_entry_is_one_line(entry, said):
    with pytest.raises(BadInput, match=re.escape(said)) as error:
        NeuralGPT2(GPT2Config(**GPT2, neural_attention=entry))
    assert "\n" not in str(error.value)


def test_what_neural_attention_has_no_place_for_is_refused():
    ids, _ = batch()
    with pytest.raises(BadInput, match=r"dropout of attention weights 0\.1"):
        built(NeuralGPT2, GPT2Config, {**GPT2, "attn_pdrop": 0.1})(ids)
    with pytest.raises(BadInput, match="softcap"):
        gpt2()(ids, softcap=30.0)
    model = gpt2()
    with pytest.raises(BadInput, match="attn_implementation=eager"):
        NeuralGPT2(GPT2Config(**GPT2, attn_implementation="eager"))
    model.transformer.set_attn_implementation("sdpa")
    with pytest.raises(BadInput, match="attn_implementation=sdpa"):
        model(ids)

    with pytest.raises(TypeError, match="must stand before the model class"):

        class BehindGPT2(GPT2LMHeadModel, NeuralAttentionMixin):
            pass

    class NeuralFalcon(NeuralAttentionMixin, FalconForCausalLM):
        pass

    with pytest.raises(BadInput, match="no attention that goes by transformers' AttentionInter"):
        NeuralFalcon(FalconConfig(neural_attention={"neural_layers": [0]}))

    with pytest.raises(BadInput, match="self-attention alone"):
        built(NeuralGPT2, GPT2Config, {**GPT2, "add_cross_attention": True})


def test_the_examples_of_the_page_run():
    """Each goes on where the one before it ended."""
    names = SimpleNamespace(__name__="__main__").__dict__
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "layer.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["text"].shape == (2, 13)
