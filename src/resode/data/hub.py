"""Data sets from the model hub, pinned to a revision and verified file by file.

A file is compared with the SHA-256 that we pinned, or, where we pinned only the revision, with the hash under
which the hub itself stores it (SHA-256 for large files, git's blob hash for small ones). Downloads go
through `huggingface_hub` into its own cache; a file that is there needs no network.
"""

import hashlib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from resode.data import parquet
from resode.data.container import Container, file_hash
from resode.errors import InputError, IntegrityError, ResourceError

TIMEOUT: Final = 5.0  # seconds until a silent hub counts as unreachable
PREFIX: Final = "hf://"
_CONVERTED: Final = "refs/convert/parquet"  # where the hub keeps its own parquet copy of other formats
_MEND: Final = "use local files: --data FOLDER, RESODE_DATA=FOLDER with FOLDER/<name>/, or --data digits"


@dataclass(frozen=True)
class Pin:
    """One revision of a hub data set: its files (path -> SHA-256, or None where we know none)."""

    repository: str
    revision: str
    files: Mapping[str, str | None]


def read(where: str, pin: Pin) -> Container:
    """Open the parquet files of a pinned data set, downloading what is not there.

    Raises:
        ResourceError: the hub cannot be reached.
        InputError: it has no such data set or file, or asks for a login.
        IntegrityError: a file has another hash.
    """
    train, test = parquet.roles(where, [PurePosixPath(path) for path in pin.files])
    local = {path: _fetch(pin, str(path)) for path in (*train, *test)}
    root = local[train[0]].parents[len(train[0].parts) - 1]
    return parquet.read(where, root, [local[path] for path in train], [local[path] for path in test])


def find(data: str) -> tuple[str, Pin]:
    """Any image-classification data set of the hub, at the revision that is asked for or its newest.

    Args:
        data: `hf://OWNER/NAME`, `hf://OWNER/NAME@COMMIT`, either with `/FOLDER` behind it where it holds
            several data sets. Where it has no parquet files, the hub's own conversion is taken.

    Returns:
        The address with its commit, which stands for the same content for ever, and the files.

    Raises:
        ResourceError: the hub cannot be reached (a commit whose files are here needs no hub).
        InputError: another form, no such data set, no parquet files.
    """
    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([0-9a-f]{{40}}))?(?:/([\w./-]+?))?/?", data)
    if not match:
        raise InputError(f"'{data}' is no data set of the hub; write {PREFIX}OWNER/NAME or .../NAME@COMMIT")
    repository, asked, folder = match[1], match[2], match[3]
    for revision in (asked,) if asked else (None, _CONVERTED):
        commit, files = _listed(repository, revision)
        if folder:
            files = [path for path in files if PurePosixPath(folder) in PurePosixPath(path).parents]
        if commit and files:
            address = f"{PREFIX}{repository}@{commit}" + (f"/{folder}" if folder else "")
            return address, Pin(repository, commit, dict.fromkeys(files))
    raise InputError(f"'{data}' has no parquet files; download it and give its folder: --data FOLDER")


def unpinned(address: str) -> str:
    """The address without its commit."""
    return re.sub(rf"^({PREFIX}[\w./-]+)@[0-9a-f]{{40}}", r"\1", address)


def _listed(repository: str, revision: str | None) -> tuple[str | None, list[str]]:
    """As `_listing`; where the hub cannot be reached, a commit's files as they lie in its cache."""
    try:
        return _listing(repository, revision)
    except ResourceError:
        cache = Path(_hub().constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
        here = cache / "snapshots" / (revision or "none")
        files = sorted(path.relative_to(here).as_posix() for path in here.rglob("*.parquet"))
        if not files:
            raise
        return revision, files


def _hub() -> Any:
    return importlib.import_module("huggingface_hub")  # takes a while; most runs do without


def _listing(repository: str, revision: str | None) -> tuple[str | None, list[str]]:
    """The commit that a revision stands for, and its parquet files."""
    hub = _hub()
    try:
        info = hub.HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT)
    except hub.errors.RevisionNotFoundError:
        return None, []
    except Exception as error:
        _explain(error, repository)
    return info.sha, [file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet")]


def _fetch(pin: Pin, path: str) -> Path:
    """The local copy of one file, verified."""
    hub = _hub()
    name = {"repo_id": pin.repository, "filename": path, "revision": pin.revision, "repo_type": "dataset"}
    try:
        local = hub.try_to_load_from_cache(**name)
        if not isinstance(local, str):
            _published_hash(name)  # one short try before the download with its patient retries
            local = hub.hf_hub_download(**name, etag_timeout=TIMEOUT)
        expected = pin.files[path] or _cached_under(Path(local)) or _published_hash(name)
    except Exception as error:
        _explain(error, pin.repository)
    found = _hash_like(expected, Path(local))
    if found != expected:
        raise IntegrityError(
            f"{local} is not {path} as published (hash {found[:12]}... instead of {expected[:12]}...); "
            "delete it to download it again"
        )
    return Path(local)


def _published_hash(name: dict[str, str]) -> str:
    hub = _hub()
    return str(hub.get_hf_file_metadata(hub.hf_hub_url(**name), timeout=TIMEOUT).etag)


def _cached_under(local: Path) -> str | None:
    """The hash that names the blob a file of the hub's cache links to."""
    name = local.readlink().name if local.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", name) else None


def _hash_like(expected: str, path: Path) -> str:
    if len(expected) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return file_hash(path, "sha256")


def _explain(error: Exception, repository: str) -> NoReturn:
    errors = _hub().errors
    reason = (str(error).strip().splitlines() or [""])[0][:120]
    if isinstance(error, errors.GatedRepoError):
        raise InputError(f"{repository} asks for a login; run `hf auth login`, or {_MEND}") from error
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError):
        raise InputError(f"the hub has no such public data: {repository} ({reason}); {_MEND}") from error
    kind = type(error).__name__
    raise ResourceError(f"{repository} cannot be had from the hub ({kind}: {reason}); {_MEND}") from error
