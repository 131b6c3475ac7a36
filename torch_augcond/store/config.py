"""The record of what a directory is a set of: written once, by whoever comes first."""

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import scan
from .disk import MAX_METADATA, explained, publish, read_regular, seal, sync_folder, unseal
from .names import ASIDE

if TYPE_CHECKING:
    from ..plan import Settings

__all__ = ["check_no_link", "check_no_links", "check_own", "check_place", "claim", "compare", "recorded"]

_FORMAT = 1


def check_place(root: Path) -> None:
    """Raises a ValueError if ``root`` lies in another set or where another one keeps things aside, or the reverse."""
    if outer := next((folder for folder in root.resolve().parents if (folder / scan.CONFIG).exists()), None):
        raise ValueError(
            f"`root` must lie outside of other sets, but {root} is inside {outer}, which would take it for one of its "
            "classes. Choose another `root`."
        )
    place = root.resolve()
    for folder in (place, *place.parents):
        name = folder.name.removesuffix(ASIDE)
        if name not in ("", folder.name) and (folder.with_name(name) / scan.CONFIG).exists():
            raise ValueError(
                f"`root` must not be where another set keeps things aside, but {root} is where "
                f"{folder.with_name(name)} does. Choose another `root`."
            )
    aside = place.with_name(place.name + ASIDE)
    if (aside / scan.CONFIG).exists():
        raise ValueError(
            f"`root` must have room beside it for what is set aside, but {aside} is another set. Choose another `root`."
        )


def claim(root: Path, settings: "Settings") -> None:
    """Makes a folder the set of these settings, or finds that it is.

    Raises:
        ValueError: If it holds another set, or files that are no set.
        OSError: If it can't be written.
    """
    if not (root / scan.CONFIG).exists():
        _write(root, settings)
    _refuse_pointers(root)
    compare(root, settings, recorded(root))


def recorded(root: Path) -> dict[str, Any]:
    """The settings a folder was claimed with, as plain values.

    Raises:
        FileNotFoundError: If nobody has claimed it.
        ValueError: If the record is damaged or from a newer version.
    """
    check_no_link(root)
    path = root / scan.CONFIG
    try:
        record = unseal(read_regular(path, MAX_METADATA), indent=2)
    except FileNotFoundError:
        raise FileNotFoundError(f"{root} holds no set of images: there is no {scan.CONFIG}.") from None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}. `torch-augcond verify` sets it aside, and the next run with the set's own "
            "configuration restores it."
        ) from error
    if (got := record.get("format")) != _FORMAT:
        raise ValueError(f"{path} must have format {_FORMAT}, but got {got}. Update torch-augcond.")
    if not isinstance(record.get("settings"), dict):
        raise ValueError(f"{path} must hold settings, but is not a record of this package. Remove it.")
    return record["settings"]


def compare(root: Path, settings: "Settings", there: dict[str, Any]) -> None:
    """Raises a ValueError that names the differences, if the settings that are ``there`` are others."""
    try:
        differences = settings.differences(type(settings)(**there))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`root` must be a set of this version's form, but {root} is not: {error}. Update torch-augcond."
        ) from error
    if differences:
        raise ValueError(
            f"`root` must hold one set, but {root} was made with another configuration: {'; '.join(differences)}. "
            "Choose another `root`, or the configuration it was made with."
        )


def check_no_link(root: Path) -> None:
    """Refuses a set whose record is a link to a file: so may all of it be, which would be taken for damage.

    Raises:
        ValueError: It says how to get at the files.
    """
    _refuse_links(root / scan.CONFIG)


def check_no_links(root: Path) -> None:
    """Refuses a set whose first images are all links to files, too, or of which one wasn't fetched by git-lfs.

    Raises:
        ValueError: It says how to get at the files.
    """
    check_no_link(root)
    _refuse_links(*_first_images(root))
    _refuse_pointers(root)


def _first_images(root: Path) -> list[Path]:
    entries = (entry for folder in scan.folders(root) for entry in scan.entries(folder.path))
    return [Path(entry.path) for entry in islice(filter(scan.is_image, entries), scan.TRIED)]


def _refuse_pointers(root: Path) -> None:
    if path := next(filter(_is_pointer, _first_images(root)), None):
        raise ValueError(f"`root` must hold images, but {path} is a pointer of git-lfs. Run `git lfs pull` there.")


def _is_pointer(path: Path) -> bool:
    try:
        return read_regular(path, 1024).startswith(b"version https://git-lfs")
    except (OSError, ValueError):
        return False


def _refuse_links(*paths: Path) -> None:
    if paths and all(path.is_symlink() and path.is_file() for path in paths):
        raise ValueError(
            f"`root` must hold files, but {paths[0]} is a link, as in the Hub's cache or in git-annex. Fetch the set "
            "with `local_dir=`, unlock it, or copy it with `cp -rL`."
        )


def check_own(root: Path) -> None:
    """Refuses a folder that has no record of settings, and holds files that are no set's: they may be the user's own.

    Raises:
        ValueError: It names one.
    """
    if not os.path.lexists(root / scan.CONFIG) and (foreign := scan.foreign(root)):
        raise ValueError(
            f"`root` must be an empty folder or a set made by this package, but {root} holds {foreign!r}. "
            "Choose another `root`."
        )


def _write(root: Path, settings: "Settings") -> None:
    check_own(root)
    if made := scan.settings(root):  # the record is gone, but the images know
        compare(root, settings, made)
    data = seal({"format": _FORMAT, "settings": settings.as_dict()}, indent=2)
    with suppress(FileExistsError), explained(root, len(data)):  # exists: what another process wrote is compared
        publish(data, root / scan.CONFIG, root, replace=False)
        sync_folder(root)
