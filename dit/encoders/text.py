"""Captions as a condition: a frozen Hugging Face text encoder, and a network of caption ids.

Batches, guidance and samplers pass class ids only. `Captioned` wraps the network and replaces ids
by embeddings.
"""

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

from dit.errors import UserError, one_line
from dit.utils.files import sha256
from dit.utils.hub import find_folder

BUNDLED = Path(__file__).parents[1] / "assets" / "digits-text"
PATTERNS = ("*.json", "model*.safetensors", "*.txt", "*.model")  # the last two: tokenizers
MAX_TOKENS = 77  # CLIP's length, and long enough for a caption
CLIP = ("clip", "clip_text_model")
BATCH = 256  # captions that are encoded at once
MAX_CACHED = 2**26  # numbers that `Captions` keeps in memory: 256 MB
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A frozen text encoder in float32.

    Attributes:
        length: L, tokens of every caption: longer ones are cut off, shorter ones padded.
        sees_padding: whether padding keeps the encoder's states, as in Stable Diffusion, whose CLIP
            also encodes the caption in them; else it is masked, and its embeddings are zero.
        checksum: SHA-256 of the weights, and of the tokenizer's vocabulary and rules.
    """

    name: str
    network: Any
    tokenizer: Any
    length: int
    sees_padding: bool
    checksum: str

    @property
    def device(self) -> torch.device:
        """The device of the encoder and its embeddings."""
        return self.network.device

    @cached_property
    def width(self) -> int:
        """E, features of a token."""
        return self.encode([""]).shape[-1]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 [n, L, E]."""
        # never an inference tensor: cached embeddings are used in training too
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            starts = range(0, len(texts), BATCH)
            parts = [self._encode(texts[start : start + BATCH]) for start in starts]
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
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float() * mask[..., None]


class Captions:
    """Embeddings of caption ids: a small set is encoded once, a large one on access.

    Args:
        texts: the caption of each id.
        null: the caption of all other ids: empty, or a negative prompt.
        encoder: of the captions.
    """

    def __init__(self, texts: Sequence[str], null: str, encoder: TextEncoder):
        self.texts, self.encoder = [*texts, null], encoder
        self._last: tuple[list[int], Tensor] | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Look up int64 [B] -> float32 [B, L, E], on the encoder's device."""
        # ids beyond the captions are the null class
        rows = ids.to(self.encoder.device).clamp(max=len(self.texts) - 1)
        if len(self.texts) * self.encoder.length * self.encoder.width <= MAX_CACHED:
            return self._table[rows]
        distinct, inverse = rows.unique(return_inverse=True)
        return self._encoded(distinct.tolist())[inverse]

    @cached_property
    def _table(self) -> Tensor:  # [n + 1, L, E]
        return self.encoder.encode(self.texts)

    def _encoded(self, ids: list[int]) -> Tensor:
        # keep the last ones: all steps of a sampler need the same captions
        last = self._last
        if last is None or last[0] != ids:
            # another thread may replace it meanwhile
            last = self._last = ids, self.encoder.encode([self.texts[i] for i in ids])
        return last[1]


@dataclass(frozen=True)
class Captioned:
    """A text-conditioned network as one of caption ids."""

    network: Network
    captions: Captions

    def __call__(self, x: Tensor, t: Tensor, ids: Tensor, *more: Tensor) -> Tensor:
        """Run the network: latents [B, C, H, W], times [B], ids [B] -> [B, C or 2C, H, W]."""
        return self.network(x, t, self.captions(ids), *more)


# -- loading ---------------------------------------------------------------------------------------


def count_text_tokens(encoder: TextEncoder | None) -> int:
    """Return the tokens of a caption; 0 without an encoder."""
    return encoder.length if encoder else 0


def load_text_encoder(name: str, device: torch.device | str = "cpu") -> TextEncoder:
    """Load `digits` (bundled), a folder in the hub's layout, or a hub name; of CLIP the text half.

    Only safetensors are read, and no code beside them is run.
    """
    folder = locate_text_encoder(name)
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
    except Exception as error:  # of transformers, tokenizers and safetensors
        raise _unusable(name, error) from error

    positions = getattr(network.config, "max_position_embeddings", None) or MAX_TOKENS
    digests = "\n".join([*map(sha256, weights), _rules(tokenizer)])
    encoder = TextEncoder(
        name=name,
        network=network.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        length=min(tokenizer.model_max_length, positions, MAX_TOKENS),
        sees_padding=kind in CLIP,
        checksum=hashlib.sha256(digests.encode()).hexdigest(),
    )
    try:
        encoder.width  # noqa: B018 - encodes a caption for the first time
    except Exception as error:
        raise _unusable(name, error) from error
    return encoder


def _rules(tokenizer: Any) -> str:
    """Return the tokenizer's vocabulary and rules, without what each call sets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return json.dumps(rules, sort_keys=True)


def _unusable(name: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return UserError(
        f"--text-encoder {name} cannot be used ({reason})",
        "intact files of a text encoder and of its tokenizer",
        "copy them again, or choose another --text-encoder",
    )


def locate_text_encoder(name: str) -> Path:
    """Return the folder that holds config.json, downloaded if necessary."""
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
    # transformers reports parts of a checkpoint that are not loaded, such as CLIP's image half
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read(folder: Path) -> tuple[Any, Any, str]:
    """Return encoder, tokenizer and kind; never unpickle, never keep a random weight."""
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
    # the pooler, which many checkpoints lack, is not used
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"the weights in {folder} lack {len(missing)} tensors, as {missing[0]}",
            "all weights of the network in its config.json",
            "copy them again",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # tokenizers of language models often have no padding of their own
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if kind in CLIP:
        return model, tokenizer, kind
    if model.config.is_encoder_decoder:
        return model.get_encoder(), tokenizer, kind
    return getattr(model, "text_model", model), tokenizer, kind
