"""A set in the form that Hugging Face's ``datasets`` reads."""

import json
from contextlib import ExitStack, suppress
from pathlib import Path

from ..progress import Progress, bar
from ..store import Store
from ..store.disk import explained, sync_folder, written
from ..store.scan import EXPORTED, folders, images, own_record

__all__ = ["export_metadata"]


def export_metadata(store: Store, progress: Progress = bar) -> tuple[Path, int]:
    """Writes ``metadata.jsonl``, one line for each image: file_name, label and all of its provenance.

    Sources have the names that they had when the image was made.

    ``load_dataset("imagefolder", data_dir=root)`` then gives each image its record. The file is whole or absent, and
    one written before is replaced. An image that leaves the set meanwhile is left out.

    Returns:
        The file, and the number of its lines.

    Raises:
        Corrupt: If an image is damaged, or none of the set.
        OSError: If it can't be written, or an image can't be read.
    """
    files = [Path(folder.path, name) for folder in folders(store.root) for name in sorted(images(folder))]
    target, own, count = store.root / EXPORTED, store.own_settings(), 0
    with ExitStack() as stack, progress(len(files), "exporting") as shown:
        with explained(target):  # around what is written, not what is read
            out = stack.enter_context(written(target, store.root))
        for file in files:
            with suppress(FileNotFoundError):
                record = own_record(file, own)
                line = {"file_name": f"{file.parent.name}/{file.name}", **record, "label": record["class_name"]}
                with explained(target):
                    out.write(json.dumps(line).encode() + b"\n")
                count += 1
            shown.update(1)
        with explained(target):
            stack.close()
            sync_folder(store.root)
    return target, count
