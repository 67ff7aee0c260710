"""`dit export`: a network as a folder for others, for diffusers, or on the hub."""

from dit.config import ExportConfig
from dit.distributed.ranks import Ranks
from dit.export.diffusers import export_diffusers
from dit.export.folder import save_folder
from dit.export.hub import push_to_hub
from dit.export.model_card import About
from dit.sampling.load import load_run
from dit.utils.files import command_line, shell_quote


def export(config: ExportConfig, ranks: Ranks) -> None:
    """Write the folder, or upload it, and print where it is.

    Raises:
        UserError: A network that cannot be expressed there, or an output that cannot be written.
    """
    if not ranks.main:
        return
    run = load_run(config.run, ranks.device)
    about = About(config.license)
    if config.to == "hub":
        assert config.repo
        url = push_to_hub(run, config.repo, private=config.private, license=config.license)
        print(f"{config.repo} is at {url}; next: {command_line('sample')} --run {config.repo}")
        return

    assert config.out
    if config.to == "diffusers":
        out = export_diffusers(run, config.out, stock=config.stock, about=about)
    else:
        out = save_folder(run, config.out, about=about)
    print(f"network in {out}; next: {command_line('sample')} --run {shell_quote(out)}")
