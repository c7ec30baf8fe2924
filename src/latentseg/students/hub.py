"""Model folders on the Hugging Face Hub: fetched and pushed, only where that was asked for."""

import re
from collections.abc import Sequence
from pathlib import Path

from latentseg.errors import InputError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: Path | str) -> bool:
    """Whether `name` reads like "user/name" and is nothing on this disk."""
    return isinstance(name, str) and bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists()


def fetch(repo_id: str, files: Sequence[str], *, revision: str | None = None) -> Path:
    """Downloads `files` of a repository into the cache of huggingface_hub; gives their folder.

    Args:
        repo_id: "user/name".
        files: Names; others of the repository are left there.
        revision: Branch, tag or commit; by default the newest.

    Raises:
        InputError: no such repository or revision, no right to read it, or no network.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=list(files)
        )
    except Exception as error:  # of huggingface_hub, or of the HTTP client that it uses
        raise InputError(
            f"{repo_id}: no such folder here, and it cannot be fetched from the Hugging Face Hub "
            f"({_first_line(error)})."
        ) from error
    return Path(folder)


def push(folder: Path, repo_id: str, *, token: str | None, private: bool) -> str:
    """Uploads the files of `folder` as one commit, making the repository if it is missing.

    Returns:
        The address of the commit.

    Raises:
        InputError: the Hub refused it, or there is no network.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Segmenter by latentseg"
        )
    except Exception as error:  # of huggingface_hub, or of the HTTP client that it uses
        raise InputError(
            f"{repo_id}: cannot be written to the Hugging Face Hub ({_first_line(error)}). "
            "Log in with `hf auth login`, or give a token that may write."
        ) from error
    return commit.commit_url


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
