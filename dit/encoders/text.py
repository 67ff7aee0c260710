"""Captions as a condition: a frozen Hugging Face text encoder, and the network that hears of captions by their ids.

Everything between data and network, from batches to guidance and samplers, knows of class ids only; what an id says is
looked up around the network (`Captioned`), at the last moment.

The bundled encoder of digits' captions is made by `python -m dit.encoders.text --out dit/assets/digits-text`.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit.data.captions import DIGIT_CAPTIONS
from dit.errors import UserError
from dit.utils.files import sha256
from dit.utils.hub import find_folder

BUNDLED = Path(__file__).parents[1] / "assets" / "digits-text"
PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*.txt",
    "*.model",
)  # a tokenizer may be any of the last two
MOST_TOKENS = 77  # CLIP's length, and long enough for a caption
CLIP = ("clip", "clip_text_model")
BATCH = 256  # captions that are encoded at once
MOST_KEPT = 2**26  # numbers that `Captions` keeps: 256 MB
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A frozen text encoder in float32.

    Attributes:
        length: L, tokens of every caption: longer ones are cut off, shorter ones padded.
        sees_padding: whether padded places keep the encoder's states, as in Stable Diffusion, whose CLIP carries the
            whole caption on into them; else they are zero, and the encoder does not attend to them.
        checksum: SHA-256 of weights, and of vocabulary and rules of the tokenizer.
    """

    name: str
    network: Any
    tokenizer: Any
    length: int
    sees_padding: bool
    checksum: str

    @property
    def device(self) -> torch.device:
        """Where the encoder lives, and its embeddings."""
        return self.network.device

    @cached_property
    def width(self) -> int:
        """E, features of a token."""
        return self.encode([""]).shape[-1]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, L, E]; never an inference tensor, so that what is kept of it serves training too."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            parts = [self._encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
            return torch.cat(parts)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if self.sees_padding:
            return self.network(input_ids=ids).last_hidden_state.float()
        return (
            self.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            * mask[..., None]
        )


class Captions:
    """Caption ids to embeddings.

    Args:
        texts: the caption of each id.
        null: the caption of all other ids: empty, or what guidance is to lead away from.
        encoder: of the captions; a small set of them is encoded once, a large one as it is asked for.
    """

    def __init__(self, texts: Sequence[str], null: str, encoder: TextEncoder):
        self.texts, self.encoder = [*texts, null], encoder
        self._last: tuple[list[int], Tensor] | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 [B] -> float32 [B, L, E], on the encoder's device."""
        rows = ids.to(self.encoder.device).clamp(max=len(self.texts) - 1)
        if len(self.texts) * self.encoder.length * self.encoder.width <= MOST_KEPT:
            return self._table[rows]
        wanted, places = rows.unique(return_inverse=True)
        return self._encoded(wanted.tolist())[places]

    @cached_property
    def _table(self) -> Tensor:  # [n + 1, L, E]
        return self.encoder.encode(self.texts)

    def _encoded(self, ids: list[int]) -> Tensor:
        """Those of the last call are kept: the steps of a sampler ask for the same ones again and again."""
        if self._last is None or self._last[0] != ids:
            self._last = ids, self.encoder.encode([self.texts[i] for i in ids])
        return self._last[1]


@dataclass(frozen=True)
class Captioned:
    """A network of text as one of class ids."""

    network: Network
    captions: Captions

    def __call__(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Noisy latents [B, C, H, W], times [B], caption ids [B] -> [B, C or 2C, H, W]."""
        return self.network(x, t, self.captions(ids))


# -- loading -----------------------------------------------------------------------------------------------------


def load_text_encoder(name: str, device: torch.device | str = "cpu") -> TextEncoder:
    """Load `digits` (bundled), a local folder in the hub's layout, or a hub name; of CLIP its text half.

    Only safetensors are read, and no code that lies beside them is run.

    Raises:
        UserError: no such folder, files missing or damaged, no text encoder, or the hub out of reach.
    """
    folder = _locate(name)
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise UserError(
            f"no model.safetensors in {folder}, for --text-encoder {name}",
            "weights in safetensors format",
            "copy that file there; pickled .bin weights are not read",
        )
    try:
        with _quiet():
            network, tokenizer, kind = _read(folder)
    except UserError:
        raise
    except Exception as error:  # transformers', tokenizers' and safetensors' kinds of damage
        raise _unusable(name, error) from error
    positions = getattr(network.config, "max_position_embeddings", None) or MOST_TOKENS
    digests = "\n".join([*map(sha256, weights), _rules(tokenizer)])
    encoder = TextEncoder(
        name=name,
        network=network.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        length=min(tokenizer.model_max_length, positions, MOST_TOKENS),
        sees_padding=kind in CLIP,
        checksum=hashlib.sha256(digests.encode()).hexdigest(),
    )
    try:
        encoder.width  # noqa: B018 - encodes a caption for the first time
    except Exception as error:
        raise _unusable(name, error) from error
    return encoder


def _rules(tokenizer: Any) -> str:
    """All that makes tokens of a text, but for padding and truncation, which each call sets anew."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    return json.dumps(
        {**json.loads(backend.to_str()), "padding": None, "truncation": None}, sort_keys=True
    )


def _unusable(name: str, error: Exception) -> UserError:
    return UserError(
        f"--text-encoder {name} can not be used ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:200]})",
        "intact files of a text encoder and of its tokenizer",
        "copy them again, or choose another --text-encoder",
    )


def _locate(name: str) -> Path:
    """The folder that holds config.json, downloaded if need be."""
    if name == "digits":
        return BUNDLED
    path = find_folder(
        "--text-encoder",
        name,
        "`digits`, a folder of a Hugging Face text encoder",
        "config.json, model.safetensors and the tokenizer's files",
        PATTERNS,
        ("*/*", "model.fp16*"),
    )
    if not (path / "config.json").is_file():
        raise UserError(
            f"--text-encoder {name} has no config.json",
            "config.json, model.safetensors and the tokenizer's files in one folder",
            "check that the folder is a Hugging Face text encoder",
        )
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports on the parts of a checkpoint that are not loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read(folder: Path) -> tuple[Any, Any, str]:
    """Encoder, tokenizer and kind of model; never a pickle, never a weight left at its random start."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel

    kind: str = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    cls: Any = CLIPTextModel if kind in CLIP else {"t5": T5EncoderModel}.get(kind, AutoModel)
    model, info = cls.from_pretrained(
        folder,
        use_safetensors=True,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(
        key for key in info["missing_keys"] if "pooler" not in key
    )  # that one is of no use here
    if missing:
        raise UserError(
            f"the weights in {folder} lack {len(missing)} tensors, as {missing[0]}",
            "all weights of the network in its config.json",
            "copy them again",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if kind not in CLIP and model.config.is_encoder_decoder:
        return model.get_encoder(), tokenizer, kind
    return model if kind in CLIP else getattr(model, "text_model", model), tokenizer, kind


# -- the bundled encoder -----------------------------------------------------------------------------------------


def write_digits_encoder(out: Path) -> None:
    """A CLIP text encoder with random weights, 2 layers of width 64, that knows the words of digits' captions.

    Random features tell captions apart, which is all that a network needs that learns what they mean. Words that are
    not in any caption all are the token <unk>.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<start>", "<end>"]
    words = special + list(
        dict.fromkeys(word for caption in DIGIT_CAPTIONS for word in caption.split())
    )
    tokens = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokens.normalizer, tokens.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
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
    network = CLIPTextModel(
        CLIPTextConfig(
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
    )
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors keeps its files private


def main() -> None:
    """Write the bundled encoder."""
    parser = argparse.ArgumentParser(description="Make the text encoder of digits' captions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out = parser.parse_args().out
    write_digits_encoder(out)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
