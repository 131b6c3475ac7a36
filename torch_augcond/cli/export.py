"""A set in the form that Hugging Face's ``datasets`` reads."""

import json
from pathlib import Path

from ..progress import Progress, bar
from ..store import Store
from ..store.disk import explained, sync_folder, written
from ..store.imagefile import read_provenance
from ..store.scan import EXPORTED, folders, images

__all__ = ["export_metadata"]


def export_metadata(store: Store, progress: Progress = bar) -> tuple[Path, int]:
    """Writes ``metadata.jsonl``, one line for each image: file_name, label and all of its provenance.

    ``load_dataset("imagefolder", data_dir=root)`` then gives each image its record. The file is whole or absent, and
    one written before is replaced.

    Returns:
        The file, and the number of its lines.

    Raises:
        Corrupt: If an image is damaged.
        OSError: If it can't be written.
    """
    files = [Path(folder.path, name) for folder in folders(store.root) for name in sorted(images(folder))]
    target = store.root / EXPORTED
    with explained(target), written(target, store.root) as out, progress(len(files), "exporting") as shown:
        for file in files:
            record = read_provenance(file)
            line = {"file_name": f"{file.parent.name}/{file.name}", **record, "label": record["class_name"]}
            out.write(json.dumps(line).encode() + b"\n")
            shown.update(1)
    with explained(target):
        sync_folder(store.root)
    return target, len(files)
