"""What was computed once from a content, kept beside the images: embeddings, and digests of source files."""

import hashlib
import os
import secrets
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from ..checks import warn
from .disk import MAX_METADATA, check_regular, publish, read_regular

_DAMAGE = (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError)
_ROWS = 4096  # how many rows are looked at together


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts), digest_size=16).digest()


def _as_bytes(values: torch.Tensor) -> list[bytes]:
    """One bytes object for each row, whatever the dtype."""
    if not len(values):
        return []
    rows = values.contiguous().reshape(len(values), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def _row_digests(keys: Sequence[bytes], values: torch.Tensor) -> list[bytes]:
    form = f"{values.dtype} {tuple(values.shape[1:])}".encode()
    return [_hash(key, form, row) for key, row in zip(keys, _as_bytes(values), strict=True)]


def _as_tensor(hashes: Sequence[bytes]) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8).reshape(-1, 16)


def _write(root: Path, prefix: str, keys: Sequence[bytes], values: torch.Tensor) -> None:
    digests = _row_digests(keys, values)
    data = save({"keys": _as_tensor(keys), "digests": _as_tensor(digests), "values": values.contiguous()})
    publish(data, root / f"{prefix}{secrets.token_hex(8)}.safetensors", root)


class _File:
    """One file of the cache, open for reading: safetensors maps it, so rows that nobody asks for are not read."""

    def __init__(self, path: Path):
        check_regular(path.lstat(), MAX_METADATA)
        with open(path, "rb"):  # of what may not be read, safetensors says that there is none
            tensors = _tensors(path)
        self._keys, self._digests, self._values = tensors["keys"], tensors["digests"], tensors["values"]
        for name in ("keys", "digests"):
            if tensors[name].dtype != torch.uint8 or tensors[name].shape != (len(self), 16):
                raise ValueError(f"its `{name}` have another form")

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[bytes]:
        return _as_bytes(self._keys)

    def read(self, rows: Sequence[int]) -> tuple[list[bytes], torch.Tensor]:
        """Keys and values of these rows, whole: safetensors checks where values lie, not what they are."""
        index = torch.tensor(rows, dtype=torch.long)
        keys, values = _as_bytes(self._keys[index]), self._values[index]
        if _row_digests(keys, values) != _as_bytes(self._digests[index]):
            raise ValueError("its values do not match their digests")
        return keys, values


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors maps only what has a name in UTF-8
        return load(read_regular(path, MAX_METADATA))
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in ("keys", "digests", "values")}


def damage(path: Path) -> str | None:
    """What is wrong with a file of the cache, every row of it; ``None`` if nothing is.

    Raises:
        OSError: If it can't be read.
    """
    try:
        file = _File(path)
        for start in range(0, len(file), _ROWS):
            file.read(range(start, min(start + _ROWS, len(file))))
    except OSError:
        raise
    except _DAMAGE as error:
        return str(error)
    return None


def _warn(path: Path, error: Exception) -> None:
    warn(f"{path} is damaged ({error}) and ignored; what it held is computed again.")


class EmbeddingCache:
    """Tensors by the content they came from: each comes back bit for bit, or is missing; never anything else.

    Each `put` adds files, each of which is whole or absent, so any number of processes may share a folder; a damaged
    one is ignored with a warning. Memory holds an index, not the values.

    Args:
        root: The folder of the set.
        fingerprint: What computes them (the generator's): nothing is shared between two fingerprints.

    Example:
        >>> cache = EmbeddingCache(root, generator.fingerprint)
        >>> cache.put({digest: embed})
        >>> cache.get([digest, "unknown"])
        {digest: tensor(...)}
    """

    def __init__(self, root: str | os.PathLike, fingerprint: str):
        self.root, self.fingerprint = Path(root), fingerprint
        self.prefix = f".augcond-embeds-{_hash(fingerprint.encode()).hex()[:16]}-"
        self._files: set[str] = set()
        self._index: dict[bytes, tuple[str, int]] = {}

    def _key(self, key: str) -> bytes:
        return _hash(self.fingerprint.encode(), key.encode("utf-8", "surrogatepass"))

    def get(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those of ``keys`` that are known, with their tensors."""
        names = {self._key(key): key for key in keys}
        if any(name not in self._index for name in names):
            self._look_for_new_files()
        wanted = defaultdict(list)
        for name in names:
            if name in self._index:
                file, row = self._index[name]
                wanted[file].append((row, name))
        return {names[name]: value for file, rows in wanted.items() for name, value in self._read(file, rows)}

    def _look_for_new_files(self) -> None:
        for name, file in _open_files(self.root, self.prefix, self._files):
            self._index.update((key, (name, row)) for row, key in enumerate(file.keys()))

    def _read(self, name: str, rows: list[tuple[int, bytes]]) -> Iterator[tuple[bytes, torch.Tensor]]:
        try:
            keys, values = _File(self.root / name).read([row for row, _ in rows])
            if keys != [key for _, key in rows]:
                raise ValueError("its rows were changed")
        except (*_DAMAGE, IndexError) as error:
            _warn(self.root / name, error)
            self._index = {key: place for key, place in self._index.items() if place[0] != name}
            return
        yield from zip(keys, values.unbind(), strict=True)

    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Keeps ``values`` (as they are on the CPU); one file for each dtype and shape, so call it for many at once.

        Raises:
            OSError: If they can't be written.
        """
        groups = defaultdict(dict)
        for key, value in values.items():
            groups[value.dtype, value.shape][self._key(key)] = value.detach().cpu()
        for group in groups.values():
            _write(self.root, self.prefix, list(group), torch.stack(list(group.values())))


def _open_files(root: Path, prefix: str, seen: set[str]) -> Iterator[tuple[str, _File]]:
    """Every readable file of the cache that is not yet in ``seen``, which grows by all there are."""
    names = os.listdir(root) if root.is_dir() else []
    for name in sorted(name for name in names if name.startswith(prefix) and name not in seen):
        seen.add(name)
        try:
            yield name, _File(root / name)
        except FileNotFoundError:  # set aside meanwhile
            continue
        except _DAMAGE as error:
            _warn(root / name, error)


class DigestCache(MutableMapping):
    """``(path, size, times and inode)`` of a source file → digest of its content; losing it only costs time.

    Paths are kept as hashes, so a set that is passed on tells nobody where its sources lay. Used as a context, what is
    new is written when it ends, however it ends.

    Example:
        >>> with store.digest_cache() as cache:
        ...     digests = sources.digests(cache=cache)
    """

    prefix = ".augcond-digests-"

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self._new: dict[bytes, bytes] = {}
        self._known: dict[bytes, bytes] = {}
        for name, file in _open_files(self.root, self.prefix, set()):
            try:
                keys, digests = file.read(range(len(file)))
                self._known.update(zip(keys, _as_bytes(digests), strict=True))
            except ValueError as error:
                _warn(self.root / name, error)

    @staticmethod
    def _key(key: tuple[str, int, str]) -> bytes:
        path, size, state = key
        return _hash(os.fsencode(path), f"{size} {state}".encode())

    def __getitem__(self, key: tuple[str, int, str]) -> str:
        name = self._key(key)
        return (self._new[name] if name in self._new else self._known[name]).hex()

    def __setitem__(self, key: tuple[str, int, str], digest: str) -> None:
        self._new[self._key(key)] = bytes.fromhex(digest)

    def __delitem__(self, key: tuple[str, int, str]) -> None:
        del self._new[self._key(key)]

    def __iter__(self) -> Iterator[bytes]:
        """The hashes of the keys: the keys themselves are not kept."""
        return iter(self._known | self._new)

    def __len__(self) -> int:
        return len(self._known | self._new)

    def save(self) -> None:
        """Writes what is new, as one more file.

        Raises:
            OSError: If it can't be written.
        """
        if self._new:
            _write(self.root, self.prefix, list(self._new), _as_tensor(list(self._new.values())))
            self._known, self._new = self._known | self._new, {}

    def __enter__(self) -> "DigestCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.save()
