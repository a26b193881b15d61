"""Data sets from the Hugging Face hub, pinned to a revision and verified file by file.

A file is compared with its pinned SHA-256 or, if only the revision is pinned, with the hash under which the
hub stores it (SHA-256 for large files, git's blob hash for small ones). `huggingface_hub` downloads into its
own cache; a cached file needs no network.
"""

import contextlib
import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from resode.data import parquet
from resode.data.raw import RawDataset, file_hash
from resode.errors import InputError, IntegrityError, ResourceError

TIMEOUT: Final = 5.0  # seconds after which a hub that does not answer counts as unreachable
PREFIX: Final = "hf://"
_CONVERTED: Final = "refs/convert/parquet"  # revision of the hub's own conversion of other formats
_FIX: Final = "use local files: --data FOLDER, RESODE_DATA=FOLDER with FOLDER/<name>/, or --data digits"


_offline: ContextVar[bool] = ContextVar("offline", default=False)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Context manager: read what is cached, and raise `ResourceError` instead of asking the hub."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


def _refuse_offline(repository: str) -> None:
    if _offline.get():
        raise ResourceError(f"{repository}: is not on this machine; {_FIX}")


@dataclass(frozen=True)
class Pin:
    """One revision of a hub data set and its files: path -> SHA-256, or None if it is not pinned."""

    repository: str
    revision: str
    files: Mapping[str, str | None]


def read(where: str, pin: Pin) -> RawDataset:
    """Open the parquet files of a pinned data set; download those that are not cached.

    Args:
        where: its name in error messages.
        pin: revision and files.

    Raises:
        ResourceError: the hub cannot be reached.
        InputError: the hub has no such data set or file, or requires a login.
        IntegrityError: a file does not have the expected hash.
    """
    train, test = parquet.roles(where, [PurePosixPath(path) for path in pin.files])
    local = {path: _fetch(pin, str(path)) for path in (*train, *test)}
    root = local[train[0]].parents[len(train[0].parts) - 1]
    return parquet.read(where, root, [local[path] for path in train], [local[path] for path in test])


def resolve(data: str) -> tuple[str, Pin]:
    """Resolve the address of any image-classification data set on the hub to a commit and its files.

    Args:
        data: `hf://OWNER/NAME` (newest commit) or `hf://OWNER/NAME@COMMIT`, followed by `/FOLDER` if the
            repository holds several data sets. If it has no parquet files, the hub's conversion is used.

    Returns:
        The address with its commit, whose content never changes, and the pinned files.

    Raises:
        ResourceError: the hub cannot be reached (not needed for a commit whose files are cached).
        InputError: a malformed address, no such data set, or no parquet files.
    """
    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([0-9a-f]{{40}}))?(?:/([\w./-]+?))?/?", data)
    if not match:
        raise InputError(f"'{data}' is not a hub address; write {PREFIX}OWNER/NAME or .../NAME@COMMIT")
    repository, requested, folder = match[1], match[2], match[3]
    for revision in (requested,) if requested else (None, _CONVERTED):
        commit, files = _list_files(repository, revision)
        if folder:
            files = [path for path in files if PurePosixPath(folder) in PurePosixPath(path).parents]
        if commit and files:
            address = f"{PREFIX}{repository}@{commit}" + (f"/{folder}" if folder else "")
            return address, Pin(repository, commit, dict.fromkeys(files))
    raise InputError(f"'{data}' has no parquet files; download it and give its folder: --data FOLDER")


def unpinned(address: str) -> str:
    """A hub address without its commit."""
    return re.sub(rf"^({PREFIX}[\w./-]+)@[0-9a-f]{{40}}", r"\1", address)


def _list_files(repository: str, revision: str | None) -> tuple[str | None, list[str]]:
    """Commit and parquet files of a revision; from the local cache if the hub cannot be reached."""
    try:
        return _query_hub(repository, revision)
    except ResourceError:
        constants = importlib.import_module("huggingface_hub.constants")
        cache = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
        snapshot = cache / "snapshots" / (revision or "none")
        files = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet"))
        if not files:
            raise
        return revision, files


def _hub() -> Any:
    return importlib.import_module("huggingface_hub")  # slow to import, and most runs do not need it


def _query_hub(repository: str, revision: str | None) -> tuple[str | None, list[str]]:
    """Ask the hub for the commit of a revision and its parquet files."""
    _refuse_offline(repository)
    hub = _hub()
    try:
        info = hub.HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT)
    except hub.errors.RevisionNotFoundError:
        return None, []
    except Exception as error:
        _explain(error, repository)
    return info.sha, [file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet")]


def _fetch(pin: Pin, path: str) -> Path:
    """Path of the verified local copy of one file."""
    hub = _hub()
    name = {"repo_id": pin.repository, "filename": path, "revision": pin.revision, "repo_type": "dataset"}
    try:
        local = hub.try_to_load_from_cache(**name)
        if not isinstance(local, str):
            _published_hash(name)  # fails within TIMEOUT, unlike the download, which retries for long
            local = hub.hf_hub_download(**name, etag_timeout=TIMEOUT)
        expected = pin.files[path] or _blob_hash(Path(local)) or _published_hash(name)
    except ResourceError:
        raise
    except Exception as error:
        _explain(error, pin.repository)
    actual = _hash_like(expected, Path(local))
    if actual != expected:
        raise IntegrityError(
            f"{local} is not {path} as published (hash {actual[:12]}... instead of {expected[:12]}...); "
            "delete it to download it again"
        )
    return Path(local)


def _published_hash(name: dict[str, str]) -> str:
    _refuse_offline(name["repo_id"])
    hub = _hub()
    return str(hub.get_hf_file_metadata(hub.hf_hub_url(**name), timeout=TIMEOUT).etag)


def _blob_hash(local: Path) -> str | None:
    """The hash in the name of the blob that a file of the hub's cache links to."""
    name = local.readlink().name if local.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", name) else None


def _hash_like(expected: str, path: Path) -> str:
    """Hash of a file by the algorithm of `expected`: git's blob hash (40 digits) or SHA-256 (64)."""
    if len(expected) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return file_hash(path, "sha256")


def _explain(error: Exception, repository: str) -> NoReturn:
    errors = _hub().errors
    reason = (str(error).strip().splitlines() or [""])[0][:120]
    if isinstance(error, errors.GatedRepoError):
        raise InputError(f"{repository} requires a login; run `hf auth login`, or {_FIX}") from error
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError):
        raise InputError(
            f"the hub has no such public data set or file: {repository} ({reason}); {_FIX}"
        ) from error
    kind = type(error).__name__
    raise ResourceError(
        f"{repository} cannot be downloaded from the hub ({kind}: {reason}); {_FIX}"
    ) from error
