"""Files are written to a temporary name and renamed: a reader, or a killed run, never meets half a file."""

import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, nothing counts as stale
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}-")
YOUNG_S = 60.0  # a temporary file may be without its lock just after it was made
KEPT = 40  # characters of a name in its temporary one: names of 255 bytes have temporary ones too
NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of writing that do not say where


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of writing, of a full disk say, name the file where the system does not."""
    try:
        yield
    except OSError as error:
        if error.errno in NAMELESS and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on an exception it vanishes.

    The temporary name keeps the suffixes of ``path`` (writers such as Pillow choose the format by them). It is random,
    the file is new and ours, and its content is on the disk before it is renamed.

    Raises:
        ValueError: there is something else than a file at ``path``, a device or a folder, say.
        OSError: it cannot be written; errors of a full disk name the file.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name[-KEPT:]}")
    # O_EXCL: whatever lies there already, a link of somebody else's, say, is not opened.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if fcntl is not None:
            with suppress(OSError):  # some network drives know no locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with naming(path):
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, path)
            _to_disk(path.parent)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def check_target(path: str | Path) -> None:
    """Make sure, before the work, that a file can be written there.

    Raises:
        ValueError: there is something that is no file, or a file where its folder should be.
        PermissionError: its folder may not be written to.
    """
    path = Path(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise ValueError(f"{path} must be a file, or not exist yet; it is {kind}, which is not replaced")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{path} must lie in a folder; {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder may not be written to", str(folder))


def remove_stale(folder: str | Path, young_s: float = YOUNG_S) -> None:
    """Remove temporary files that killed processes have left in a folder: those that nobody holds a lock on.

    Files younger than ``young_s`` seconds stay.
    """
    if fcntl is None or not Path(folder).is_dir():
        return
    for path in Path(folder).iterdir():
        if TEMPORARY.match(path.name) and path.is_file() and not path.is_symlink() and _is_abandoned(path, young_s):
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` by way of a temporary file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without the mark that Windows editors put at its start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another encoding; the message names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise ValueError(f"{path} must be a text in UTF-8; it is not: {place}. Save it as UTF-8") from error


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; ``what`` it should be is for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no object.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be {what}; it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be {what}; it holds a {type(content).__name__}")
    return content


def _to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk: a rename may get there before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # drives that cannot be asked
            raise
    finally:
        os.close(handle)


def _is_abandoned(path: Path, young_s: float) -> bool:
    if time.time() - path.stat().st_mtime < young_s:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
