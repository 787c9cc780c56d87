"""Which code ran: a commit, or without git a digest of the sources that names the commit in a clone.

python -m benchmarks.harness.source tree-0123456789      prints the commits whose sources have this digest
"""

import argparse
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("ncakern", "csrc", "python_api/ncaseg", "benchmarks")
SUFFIXES = (".py", ".cpp", ".h", ".inl", ".inc", ".toml", ".sh")
RECORDS = ("benchmarks/results", "benchmarks/records")  # what is written there changes no figure
DIGITS = 10


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """Ask git; None without git, or outside a repository with a commit."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit_here(root: Path = ROOT) -> tuple[str, bool]:
    """The commit, and whether files differ from it; without git `tree-<digest>`, which stands for these very files."""
    commit = git("rev-parse", f"--short={DIGITS}", "HEAD", root=root)
    if commit is None:
        return f"tree-{digest(blobs_here(root))}", False
    return commit, bool(git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in RECORDS), root=root))


def digest(blobs: Iterable[tuple[str, str]]) -> str:
    """Of the code among files, given as (path, git's hash of the content)."""
    chosen = sorted(f"{path} {blob}\n" for path, blob in blobs if is_code(path))
    return hashlib.sha256("".join(chosen).encode()).hexdigest()[:DIGITS]


def is_code(path: str) -> bool:
    return (
        path.endswith(SUFFIXES)
        and any(path.startswith(f"{folder}/") for folder in FOLDERS)
        and not any(path.startswith(f"{folder}/") for folder in RECORDS)
    )


def blobs_here(root: Path) -> Iterable[tuple[str, str]]:
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root).as_posix()
            if is_code(name) and path.is_file():
                content = path.read_bytes()
                yield name, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def blobs_of(commit: str, root: Path) -> Iterable[tuple[str, str]]:
    for line in (git("ls-tree", "-r", commit, root=root) or "").splitlines():
        kind, path = line.split("\t", 1)
        yield path, kind.split()[2]


def find(wanted: str, root: Path = ROOT) -> list[str]:
    """The commits, newest first, whose sources have the digest of a name such as `tree-0123456789`."""
    commits = (git("log", "--format=%H", root=root) or "").split()
    return [c[:DIGITS] for c in commits if f"tree-{digest(blobs_of(c, root))}" == wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", help="what stands for a commit in rows that were made without git")
    found = find(parser.parse_args().tree)
    if not found:
        raise SystemExit("no commit of this clone has these sources")
    print("\n".join(found))


if __name__ == "__main__":
    main()
