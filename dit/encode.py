"""Encode images to latents once, so that training need not."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dit.config import EncodeConfig
from dit.data.images import ImageFiles, ImageFolder, Images, size_flag
from dit.data.sources import load_images
from dit.errors import UserError
from dit.hardware import Ranks
from dit.latents import shards
from dit.latents.autoencoder import Autoencoder, load_autoencoder
from dit.latents.moments import decode_batches, encode_views


def encode(cfg: EncodeConfig, ranks: Ranks) -> Path:
    """Write the folder of latents that `cfg` asks for; complete shards of an earlier run are kept.

    Every rank calls this and makes its share of the missing shards. All is checked before anything is written.

    Returns:
        The folder, which `LatentStore` opens.

    Raises:
        UserError: bad images, autoencoder or sizes; the folder holds something else, or another process
            encodes there; the disk is too small.
    """
    images = load_images(cfg.data, cfg.image_size, cfg.captions)
    autoencoder = load_autoencoder(cfg.vae, ranks.device)
    shape = autoencoder.latent_shape(cfg.image_size)
    encoding = describe(cfg, images, autoencoder)
    if isinstance(images, ImageFolder) and cfg.out.resolve().parent == images.root.resolve():
        raise UserError(f"--out {cfg.out} lies in --data {cfg.data}", "a folder elsewhere: there it would be a class",
                        "choose another --out")
    ranks.on_main(lambda: shards.check_folder(cfg.out, encoding))
    with ranks.alone_in(cfg.out):
        missing = _missing(cfg.out, encoding, ranks)
        view = (2 if encoding.flips else 1, 2 * shape[0], *shape[1:])
        _check_space(cfg.out, encoding.images_in(missing), view)
        own = missing[ranks.rank :: ranks.world]
        quiet = not (ranks.main and own)
        if isinstance(images, ImageFiles):
            _check_images(images, cfg.out, [encoding.indices(shard).tolist() for shard in own], ranks)
        ranks.on_main(lambda: shards.claim(cfg.out, encoding))
        name = "encode" if ranks.world == 1 else f"encode, rank 0 of {ranks.world}"
        with tqdm(total=encoding.images_in(own), unit="img", desc=name, disable=quiet) as bar:
            for shard in own:
                indices = encoding.indices(shard)
                decoded = decode_batches(images, indices, cfg.batch_size)
                batches = _encoded(decoded, autoencoder, encoding.flips, bar)
                shards.write_shard(cfg.out, shard, batches, (len(indices), *view))
        ranks.barrier()
        if ranks.main:
            shards.write_index(cfg.out, encoding, images, shape)
            text = " --conditioning text --text-encoder NAME" if cfg.captions else ""
            print(f"{len(images):,} latents {' x '.join(map(str, shape))} in {cfg.out}; next: "
                  f"python train.py --data {cfg.out} --vae {cfg.vae} {size_flag(cfg.image_size)}{text}")
        ranks.barrier()
    return cfg.out


def describe(cfg: EncodeConfig, images: Images, autoencoder: Autoencoder) -> shards.Encoding:
    """What the folder is going to hold."""
    return shards.Encoding(
        vae=autoencoder.name,
        checksum=autoencoder.checksum,
        image_size=shards.plain_size(cfg.image_size),
        flips=images.flips if cfg.flip is None else cfg.flip,
        count=len(images),
        shard_size=cfg.shard_size,
        fingerprint=images.fingerprint,
        captions=cfg.captions,
    )


def _missing(root: Path, encoding: shards.Encoding, ranks: Ranks) -> list[int]:
    """The shards that are still to be made, the same on every rank; each rank checks its share of the others."""
    missing = torch.zeros(encoding.shards, device=ranks.device)
    for shard in range(ranks.rank, encoding.shards, ranks.world):
        missing[shard] = not shards.is_complete(root, shard)
    return ranks.total(missing).nonzero().flatten().tolist()


def _encoded(batches: Iterator[Tensor], autoencoder: Autoencoder, flips: bool, bar: tqdm) -> Iterator[Tensor]:
    for images in batches:
        yield encode_views(images, autoencoder, flips)
        bar.update(len(images))


def _check_images(images: ImageFiles, root: Path, parts: list[list[int]], ranks: Ranks) -> None:
    """Each rank looks at the images of its `parts`; all raise the same error."""
    bad = torch.zeros(len(images), device=ranks.device)
    total = sum(map(len, parts))
    with (ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
          tqdm(total=total, unit="img", desc="checking", disable=not (ranks.main and total)) as bar):
        for part in parts:
            for index, damage in zip(part, pool.map(images.damage, part), strict=True):
                if damage:
                    bad[index] = 1
                bar.update()
    found = ranks.total(bad).nonzero().flatten().tolist()
    if found:
        names = ", ".join(map(images.name, found[:5])) + (", …" if len(found) > 5 else "")
        begun = shards.holds_latents(root)  # then the names and the order of the images must stay
        raise UserError(f"{len(found)} of {len(images)} images can not be read: {names} ({images.damage(found[0])})",
                        "intact image files", "replace them by images of the same names" if begun else
                        "replace or delete them: no shard is written yet")


def _check_space(root: Path, count: int, view: tuple[int, ...]) -> None:
    needed, free = count * 2, shutil.disk_usage(root).free  # float16
    for size in view:
        needed *= size
    if needed > free:
        raise UserError(f"the latents need {needed / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB",
                        "room for all of them", "free some space or pass another --out")
