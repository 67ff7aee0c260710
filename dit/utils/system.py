"""What systems do differently: locks, limits, reading at a place, syncing. Linux has all of it."""

import os
import sys
import threading
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ModuleNotFoundError:  # all but Windows
    msvcrt = None  # type: ignore[assignment]
try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

LEAST_OPEN_FILES = 512  # what Windows allows a process
OPEN_FLAGS = getattr(os, "O_BINARY", 0)  # Windows would change line ends
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_seeking = threading.Lock()


def lock_file(descriptor: int) -> None:
    """Lock an open file against other processes, until it is closed.

    Raises:
        BlockingIOError: Another process has locked it.
        OSError: The file system has no locks.
    """
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as error:  # how Windows says that it is locked
            raise BlockingIOError(error.errno, error.strerror) from error
    else:
        print("note: this system has no locks: run one process a folder", file=sys.stderr)


def most_open_files() -> int | None:
    """Return how many files a process may open; None: any number."""
    if resource is None:
        return LEAST_OPEN_FILES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def peak_process_memory() -> float:
    """Return the bytes of main memory that this process had at most; NaN where unknown."""
    if resource is None:
        return float("nan")
    # ru_maxrss is in bytes on macOS, in kB elsewhere
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_at(descriptor: int, buffer: memoryview, start: int) -> int:
    """Fill a buffer from a place in an open file, from any thread; return the bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], start)
    with _seeking:
        os.lseek(descriptor, start, os.SEEK_SET)
        done = 0
        while done < len(buffer) and (part := os.read(descriptor, len(buffer) - done)):
            buffer[done : done + len(part)] = part
            done += len(part)
    return done


def sync_to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk, to survive a power failure."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and keeps names safe by itself
    # Windows syncs only what is open for writing
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
