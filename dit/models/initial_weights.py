"""Initial weights of a DiT, each by one rule (2212.09748, section 3.2, and its release)."""

from torch import nn

# Ends of the names of parameters that start at zero. With adaLN-Zero a fresh block is thereby the
# identity; with any conditioning the output of a fresh network is zero.
ZERO_INIT = (
    ".bias",
    ".adaLN_modulation.1.weight",
    ".gate1",
    ".gate2",
    ".text_attn.proj.weight",
    "final_layer.linear.weight",
    "head.weight",
)


def init_weights(network: nn.Module) -> None:
    """Set all weights of a network that are trained."""
    for name, parameter in network.named_parameters():
        if name.endswith(ZERO_INIT):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            # the scale of a norm
            nn.init.ones_(parameter)
        elif name.startswith(("t_embedder.", "y_embedder.", "context.modulation.")):
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith((".adaLN_table", "context.tokens")):
            # what each block adds to one modulation (2310.00426), learned tokens (2512.02012)
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name != "pos_embed":
            # flattened, the patch convolution counts as a linear layer
            nn.init.xavier_uniform_(parameter.flatten(1))
