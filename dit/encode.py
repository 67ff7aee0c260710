"""Encode images to latents once, so that training need not."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import EncodeConfig
from dit.data.images import Images, load_images
from dit.errors import UserError
from dit.hardware import Ranks
from dit.latents import store
from dit.latents.autoencoder import Autoencoder, load_autoencoder


def encode(cfg: EncodeConfig, ranks: Ranks) -> Path:
    """Write the folder of latents that `cfg` asks for; complete shards of an earlier run are kept.

    Every rank calls this and makes its share of the missing shards.

    Returns:
        The folder, which `store.LatentStore` opens.

    Raises:
        UserError: bad images, autoencoder or sizes; the folder holds something else; the disk is too small.
    """
    images = load_images(cfg.data, cfg.image_size)
    autoencoder = load_autoencoder(cfg.vae, ranks.device)
    shape = autoencoder.latent_shape(cfg.image_size)
    encoding = describe(cfg, images, autoencoder)
    if ranks.main:
        store.claim(cfg.out, encoding)
    ranks.barrier()
    store.check_claim(cfg.out, encoding)
    missing = _missing(cfg.out, encoding, ranks)
    view = (2 if encoding.flips else 1, 2 * shape[0], *shape[1:])
    _check_space(cfg.out, encoding.images_in(missing), view)
    own = missing[ranks.rank :: ranks.world]
    name = "encode" if ranks.world == 1 else f"encode, rank 0 of {ranks.world}"
    with tqdm(total=encoding.images_in(own), unit="img", desc=name, disable=not ranks.main) as bar:
        for shard in own:
            indices = encoding.indices(shard)
            decoded = store.decode_batches(images, indices, cfg.batch_size)
            batches = _encoded(decoded, autoencoder, encoding.flips, bar)
            store.write_shard(cfg.out, shard, batches, (len(indices), *view))
    ranks.barrier()
    if ranks.main:
        store.write_index(cfg.out, encoding, images, shape)
    ranks.barrier()
    return cfg.out


def describe(cfg: EncodeConfig, images: Images, autoencoder: Autoencoder) -> store.Encoding:
    """What the folder is going to hold."""
    return store.Encoding(
        vae=autoencoder.name,
        checksum=autoencoder.checksum,
        image_size=cfg.image_size,
        flips=images.flips if cfg.flip is None else cfg.flip,
        count=len(images),
        shard_size=cfg.shard_size,
        fingerprint=images.fingerprint,
    )


def _missing(root: Path, encoding: store.Encoding, ranks: Ranks) -> list[int]:
    """The shards that are still to be made, the same on every rank; each rank checks its share of the others."""
    missing = torch.zeros(encoding.shards, device=ranks.device)
    for shard in range(ranks.rank, encoding.shards, ranks.world):
        missing[shard] = not store.is_complete(root, shard)
    return ranks.total(missing).nonzero().flatten().tolist()


def _encoded(batches: Iterator[Tensor], autoencoder: Autoencoder, flips: bool, bar: tqdm) -> Iterator[Tensor]:
    for images in batches:
        yield store.encode_views(images, autoencoder, flips)
        bar.update(len(images))


def _check_space(root: Path, count: int, view: tuple[int, ...]) -> None:
    needed, free = count * 2, shutil.disk_usage(root).free  # float16
    for size in view:
        needed *= size
    if needed > free:
        raise UserError(f"the latents need {needed / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB",
                        "room for all of them", "free some space or pass another --out")
