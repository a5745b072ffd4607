"""Finding data on disk and, when asked, fetching it: paths that do not exist are answered with the nearest names."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from excite.errors import UserError

__all__ = ["Remote", "existing", "fetch", "find_usual"]

_CHUNK = 1 << 20
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Remote:
    """A file that can be downloaded: its name, the addresses that have it, and the sha256 of its bytes."""

    name: str
    urls: tuple[str, ...]
    sha256: str


def existing(path: str, what: str) -> Path:
    """``path`` with ``~`` expanded.

    Raises:
        UserError: there is no such path; names the nearest ones beside the first part that is missing.
    """
    wanted = Path(path).expanduser()
    if wanted.exists():
        return wanted
    missing = wanted.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    beside = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
    near = get_close_matches(missing.name, beside, n=3, cutoff=0.5)
    said = f"did you mean {' or '.join(repr(str(missing.parent / n)) for n in near)}?" if near else ""
    raise UserError(f"{what}: there is no {str(wanted)!r}; {said or f'{str(missing.parent)!r} has no such name'}")


def find_usual(name: str, places: Sequence[str], holds: Callable[[Path], bool]) -> Path:
    """The first of the usual ``places`` for which ``holds`` is true.

    Raises:
        UserError: none does; says where it looked and the ways out.
    """
    looked = [Path(place).expanduser() for place in places]
    for place in looked:
        if place.exists() and holds(place):
            return place
    raise UserError(
        f"{name} is not in {', '.join(str(p) for p in looked)}; give its place as '{name}:PATH', "
        "or ask for it to be downloaded (--download true, download=True)"
    )


def fetch(files: Iterable[Remote], folder: Path) -> None:
    """Download ``files`` into ``folder``, each checked by its sha256 before it takes its name; what is there stays.

    Raises:
        UserError: a file there has other bytes, the folder cannot be written to, or no address gave the right bytes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot download into {folder}: {error.strerror}") from error
    for remote in files:
        target = folder / remote.name
        if target.exists():
            if _sha256(target) != remote.sha256:
                raise UserError(
                    f"{target} is not the file it should be (sha256 {remote.sha256}); delete it to download it again"
                )
            continue
        _fetch_one(remote, target)


def _fetch_one(remote: Remote, target: Path) -> None:
    failed = []
    for url in remote.urls:
        # Under another name until it is whole: a killed download leaves nothing that could be taken for data.
        try:
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{remote.name}.")
        except OSError as error:
            raise UserError(f"cannot download into {target.parent}: {error.strerror}") from error
        try:
            with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                while block := answer.read(_CHUNK):
                    out.write(block)
            got = _sha256(Path(temporary))
            if got == remote.sha256:
                Path(temporary).chmod(0o644)
                os.replace(temporary, target)
                return
            failed.append(f"{url}: its bytes have sha256 {got}, not {remote.sha256}")
        except (urllib.error.URLError, OSError, ValueError) as error:
            failed.append(f"{url}: {error}")
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise UserError(f"could not download {remote.name}: {'; '.join(failed)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
