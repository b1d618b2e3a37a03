"""Attention mechanisms, one file each. A new one needs its file, a line here and a YAML in
configs/model; options of its own need a section in attnlab.options.
"""

from importlib import import_module

# mechanism -> file.Class. Imported only when asked for: the configuration is checked against
# these names before torch is there.
ATTENTION = {
    "dot_product": "dot.DotProductAttention",
    "neural": "neural.NeuralAttention",
    "additive": "additive.AdditiveAttention",
    "expressive": "expressive.ExpressiveAttention",
    "dagpam": "dagpam.DualAttention",
    "cog": "cog.CogAttention",
    "gaussian_keys": "gaussian_keys.GaussianKeysAttention",
    "uniform": "uniform.UniformAttention",
    "identity": "identity.IdentityAttention",
    "qk_norm": "dot.QKNormAttention",
    "dot_product_wide": "dot.DotProductAttention",
}


def build_attention(options, arch):
    """The mechanism of a model section (`attnlab.options`) for a body (`Config.arch`)."""
    file, name = ATTENTION[options.mechanism].split(".")
    return getattr(import_module(f"{__name__}.{file}"), name)(options, arch)
