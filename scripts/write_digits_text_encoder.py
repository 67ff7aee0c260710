"""Write the bundled text encoder of digits' captions.

python scripts/write_digits_text_encoder.py --out dit/assets/digits-text
"""

import argparse
from pathlib import Path

import torch

from dit.data.captions import DIGIT_CAPTIONS


def write_digits_encoder(out: Path) -> None:
    """Write a CLIP text encoder of digits' captions: random weights, 2 layers of width 64.

    Random features suffice to distinguish captions; the diffusion network learns their meaning.
    Words of no caption are the token <unk>.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<start>", "<end>"]
    words = dict.fromkeys([*special, *" ".join(DIGIT_CAPTIONS).split()])
    ids = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokens.normalizer = normalizers.Lowercase()
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    length = 8
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=length,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    CLIPTextModel(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors keeps its files private


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out = parser.parse_args().out
    write_digits_encoder(out)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
