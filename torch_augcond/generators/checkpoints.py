"""Where a checkpoint lies: a short name, a Hub repository or a folder → a folder here, and its fingerprint."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checks import brief, did_you_mean
from .folder import INDEX, check_folder, check_index, choose_files, num_missing, num_parameters_in
from .weights import MODELS

__all__ = ["MIRRORS", "SHORT_NAMES", "Checkpoint", "cached_commit", "find_checkpoint", "is_folder", "short_name"]

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-unclip"

# Stability AI removed all Stable Diffusion 2.x repositories in November 2025; these are tried in order.
MIRRORS = MappingProxyType(
    {
        "sd21-unclip": (
            "sd2-community/stable-diffusion-2-1-unclip",
            "radames/stable-diffusion-2-1-unclip-img2img",
            "diffusers/stable-diffusion-2-1-unclip-i2i-h",
            "stabilityai/stable-diffusion-2-1-unclip",
        ),
        "sd21-unclip-small": (
            "sd2-community/stable-diffusion-2-1-unclip-small",
            "diffusers/stable-diffusion-2-1-unclip-i2i-l",
            "stabilityai/stable-diffusion-2-1-unclip-small",
        ),
    }
)

SHORT_NAMES = (*MIRRORS, "tiny")
_GONE = {401, 403, 404, 410}


def is_folder(name: str) -> bool:
    """Whether `find_checkpoint` takes it for a folder: not what is called like a short name."""
    return name not in SHORT_NAMES and os.path.isdir(name)


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline folder on this machine.

    Args:
        folder: Where it lies.
        files: The files in it that loading reads, relative, sorted.
        fingerprint: ``repository@commit``, or for a user's own folder a hash of those files; never a path.
        stamps: Of those files before they were hashed, if they were.
    """

    folder: Path
    files: tuple[str, ...]
    fingerprint: str
    stamps: tuple[tuple[int, ...], ...] = ()

    def _weights(self, part: str) -> list[Path]:
        return [self.folder / file for file in self.files if file.startswith(part) and file.endswith(".safetensors")]

    def num_parameters(self) -> int:
        """Weights in all its models, from the files' headers.

        Raises:
            ValueError: If a file is damaged.
        """
        return sum(num_parameters_in(file) for file in self._weights(""))

    def check_whole(self, pipe: Any) -> None:
        """Refuses a pipeline whose files lack weights: the libraries would draw those at random, with a log line.

        Raises:
            ValueError: It names the models.
        """
        missing = {part: num_missing(getattr(pipe, part), self._weights(part)) for part in MODELS}
        if lacking := [f"{count:,} of its {part}" for part, count in missing.items() if count]:
            raise ValueError(
                f"`name_or_path` must hold all weights, but {str(self.folder)!r} lacks {', '.join(lacking)}. "
                "Fetch the checkpoint again."
            )

    def check_unchanged(self) -> None:
        """Refuses files that were written after they were hashed: what was loaded may be either.

        Raises:
            ValueError: It names the folder.
        """
        if self.stamps and self.stamps != _stamps(self.folder, self.files):
            raise ValueError(
                f"`name_or_path` must stay as it is while it is loaded, but {str(self.folder)!r} has changed. Load it "
                "again once it is written."
            )


def _stamps(folder: Path, files: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    found = [os.stat(folder / file) for file in files]
    return tuple((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) for status in found)


def find_checkpoint(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """A short name, a folder or ``owner/name`` on the Hub → the checkpoint on this machine, downloaded if need be.

    Folders never touch the network. A short name's mirrors are tried in order, and one that is cached is used when
    none can be reached. Arguments and errors: see ``load_generator``.
    """
    name = os.fspath(name_or_path)
    if name in MIRRORS:
        return _from_hub(name, MIRRORS[name], revision, variant, token, cache_dir, local_files_only)
    folder = TINY if name == "tiny" else Path(name).expanduser()
    if name and os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long as well
        if revision is not None:
            raise ValueError(f"`revision` must be None for {name!r}, which lies here, but got {revision!r}.")
        return _from_folder(folder, name, variant)
    if isinstance(name_or_path, Path) or not re.fullmatch(r"[^./~\s][^/\s]*/[^/\s]+", name):
        raise FileNotFoundError(
            f"`name_or_path` must be an existing folder, owner/name on the Hugging Face Hub or one of "
            f"{', '.join(SHORT_NAMES)}, but there is no folder {brief(name, 200)!r}.{did_you_mean(name, SHORT_NAMES)}"
        )
    return _from_hub(name, (name,), revision, variant, token, cache_dir, local_files_only)


def short_name(fingerprint: str) -> str | None:
    """What to type for a checkpoint that has a short name, given its fingerprint."""
    checkpoint = re.split("[+#]", fingerprint)[0]
    repository = checkpoint.partition("@")[0]
    if repository == "local":
        return "tiny" if TINY.is_dir() and checkpoint == find_checkpoint("tiny").fingerprint else None
    return next((name for name, mirrors in MIRRORS.items() if repository in mirrors), None)


def cached_commit(repo: str) -> str | None:
    """Of a repository on the Hub, the commit that loading it takes where the Hub can't be reached; None if none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        index = try_to_load_from_cache(repo, INDEX)
    except ValueError:  # a name that none there can have
        return None
    return Path(index).parent.name if isinstance(index, str) else None


def _from_folder(folder: Path, name: str, variant: str | None) -> Checkpoint:
    """A folder is known by what loading reads of it: it may be moved, and its README edited."""
    files = check_folder(folder, name, variant)
    digest, stamps = hashlib.blake2b(digest_size=16), _stamps(folder, files)
    for file in files:
        with (folder / file).open("rb") as stream:
            digest.update(f"{file}\0{hashlib.file_digest(stream, 'blake2b').hexdigest()}\n".encode())
    return Checkpoint(folder, files, f"local@{digest.hexdigest()}", stamps)


def _from_hub(
    name: str,
    repos: Sequence[str],
    revision: str | None,
    variant: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Checkpoint:
    """The first of ``repos`` that can be had; the error names those that were asked."""
    where = {"cache_dir": cache_dir, "token": token}
    offline = down = None if local_files_only else _no_answer(repos[0], revision, token)
    reasons = {repos[0]: type(down).__name__} if down else {}
    for repo in repos:
        try:
            folder = _fetch(repo, revision, variant, where, local_files_only, down)
        except _hub_errors() as error:
            if down:  # all are on one Hub
                continue
            cause = error.__cause__ or error
            reasons[repo] = str(_status(cause) or type(cause).__name__)
            offline = offline if _status(error) in _GONE else error
        else:
            suffix = f"#{variant}" if variant else ""
            return Checkpoint(folder, check_folder(folder, repo, variant), f"{repo}@{folder.name}{suffix}")
    if local_files_only:
        raise FileNotFoundError(
            f"`local_files_only` is set, but {name!r} is not cached; looked for {', '.join(repos)}. "
            'Load it once with local_files_only=False, pass a folder, or use generator="tiny".'
        )
    tried = ", ".join(f"{repo} ({reason})" for repo, reason in reasons.items())
    if offline:
        raise ConnectionError(
            f"{name!r} is not cached and the Hugging Face Hub can't be reached; tried {tried}. "
            'Check the network, pass a folder, or use generator="tiny", which needs no network.'
        ) from offline
    raise FileNotFoundError(
        f"{name!r} is gone from the Hugging Face Hub, or closed to you; tried {tried}. "
        'Pass a folder that holds it, `token` if it is private, or use generator="tiny".'
    )


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when a repository can't be read; a full disk's OSError is not among them."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The first base is the HTTP library's own error; which library that is differs between releases of the client.
    return HfHubHTTPError.__bases__[0], LocalEntryNotFoundError, ConnectionError


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _no_answer(repo: str, revision: str | None, token: str | bool | None) -> Exception | None:
    """What went wrong, if there is no way to the Hub: its client would try for half a minute, and say so each time."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, INDEX, revision=revision), token=token)
    except _hub_errors() as error:
        # A Hub that is slow to answer is asked again by the client, which then waits longer.
        return None if _status(error) or type(error).__name__ == "ReadTimeout" else error
    return None


def _fetch(
    repo: str,
    revision: str | None,
    variant: str | None,
    where: dict[str, Any],
    local_files_only: bool,
    down: Exception | None,
) -> Path:
    """The cached snapshot of one commit, with every file that loading reads and no other kind of file."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    cached_only = local_files_only or down is not None
    index = hf_hub_download(repo, INDEX, revision=revision, local_files_only=cached_only, **where)
    folder = Path(index).parent
    check_index(folder, repo)
    if local_files_only:
        return folder
    commit = folder.name  # resolved by the first request; the others name it, so that no push comes in between
    try:
        if down:
            raise down
        names = HfApi(token=where["token"]).list_repo_files(repo, revision=commit)
        files = choose_files(names, repo, variant)
        snapshot_download(repo, revision=commit, allow_patterns=list(files), **where)
    except _hub_errors():
        if not _is_complete(folder, variant):
            raise
    return folder


def _is_complete(folder: Path, variant: str | None) -> bool:
    try:
        return bool(check_folder(folder, str(folder), variant))
    except (FileNotFoundError, ValueError):
        return False
