"""Put a network on the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory

from dit.errors import UserError, one_line
from dit.export.diffusers import save_for_all
from dit.export.folder import FILES, FOLDERS, RECORD
from dit.export.model_card import About
from dit.sampling.load import LoadedRun


def push_to_hub(
    run: LoadedRun,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a network to OWNER/NAME of the hub; return the address of its page.

    What is uploaded is a folder of `dit export --to diffusers`, of captions one of --to folder:
    EMA weights, autoencoder, model card and a picture, never the state of the optimizer. The
    repository is created if it is not there; its files of the same names are replaced.

    Args:
        run: What to upload.
        repo_id: OWNER/NAME.
        private: Whether a new repository is private.
        token: To write with; the one of `hf auth login` or HF_TOKEN unless given.
        license: Of the weights, such as mit; `unknown` unless given.

    Raises:
        UserError: The hub is out of reach, or refuses.
    """
    from huggingface_hub import HfApi

    if repo_id.count("/") != 1:
        raise UserError(f"--repo {repo_id}", "OWNER/NAME of the hub", "name both")
    with TemporaryDirectory() as temporary:
        folder = save_for_all(run, Path(temporary, "folder"), about=About(license, repo_id))
        api = HfApi(token=token)
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                ignore_patterns=[RECORD],
                # of an earlier network in another format
                delete_patterns=[*FILES, *(f"{name}/*" for name in FOLDERS)],
                commit_message=f"{run.card.network.model} at step {run.weights.step:,}",
            )
        except Exception as error:  # of many kinds, also of the HTTP library
            raise UserError(
                f"{repo_id} cannot be written to on the hub ({one_line(error)})",
                "network access, and a token with the right to write there",
                "log in with `hf auth login`, or set HF_TOKEN",
            ) from error
    return str(url)
