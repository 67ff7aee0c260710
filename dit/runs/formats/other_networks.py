"""Networks of other kinds, told from the names of their tensors, to refuse them by name."""

import re
from collections.abc import Iterable

# Patterns of names, and what has them. The first that is found counts.
SIGNS = [
    (r"lora_|\.lora\.|hada_w1", "a LoRA, a change of the weights of another network"),
    (r"exp_avg|^param_groups", "the state of an optimizer"),
    (r"(^|\.)joint_blocks\.|context_block", "an MMDiT, as of Stable Diffusion 3"),
    (r"(^|\.)double_blocks\.", "a FLUX"),
    (r"caption_projection|y_embedder\.y_proj|cross_attn\.kv_linear", "a PixArt"),
    (r"transformer_blocks\.\d+\.norm1\.emb\.", "diffusers' DiTTransformer2DModel"),
    (r"sideblocks\.|en_inblocks\.", "a masked diffusion transformer (MDT)"),
    (r"(^|\.)in_blocks\.\d+\.", "a U-ViT"),
    (r"(^|\.)(en|de)c\.\d+x\d+_", "a U-Net of EDM or EDM2"),
    (r"encoder\.(conv_in|down)", "an autoencoder (VAE); --vae takes its diffusers folder"),
    (r"input_blocks\.\d+\.", "a U-Net of ADM or Stable Diffusion"),
    (r"(^|\.)down_blocks\.", "a U-Net in diffusers' names"),
    (r"\.attn\.[qk]_norm\.", "a transformer with normalised queries and keys (qk-norm)"),
    (r"cls_token|patch_embed\.proj", "a vision transformer (ViT), such as DINOv2"),
    (r"Mixed_7c", "an Inception network"),
    (r"(^|\.)(lm_head|embed_tokens|wte)\.", "a language model"),
]


def other_network(names: Iterable[str]) -> str | None:
    """Return what has tensors of these names, if it is known and none that can be read."""
    names = list(names)
    for pattern, kind in SIGNS:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None
