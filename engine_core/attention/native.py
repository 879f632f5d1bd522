"""Compiles a C++ file of this package on the machine that runs it, once, and keeps the library in the user's cache.

Compiling here is what lets the code use every instruction that this CPU has. Libraries lie in a folder that nobody else
can write to, under a name that holds all they depend on: source, compiler, flags and CPU. Two processes may make the
same one at once; the rename that puts it in its place is atomic, and both files are the same.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

FLAGS: Final = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
TIMEOUT_S: Final = 120.0


class CannotCompile(RuntimeError):
    """No compiler here, or it refuses the source."""


def load(source: Path) -> ctypes.CDLL:
    """The library made of `source`, from the cache if it is there. Raises CannotCompile."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or platform.system() != "Linux":
        raise CannotCompile("there is no C++ compiler, or this is not Linux")
    name = f"{source.stem}-{fingerprint(source, compiler)}.so"
    folder = cache_folder()
    if folder is not None:
        try:
            return from_cache(folder / name, source, compiler)
        except OSError:
            pass  # full, read-only, or mounted noexec
    with tempfile.TemporaryDirectory(prefix="tokenwire-") as temporary:
        library = Path(temporary) / name
        try:
            compile_to(library, source, compiler)
            return ctypes.CDLL(str(library))  # stays mapped when the file is gone
        except OSError as error:
            raise CannotCompile(str(error)) from error


def from_cache(library: Path, source: Path, compiler: str) -> ctypes.CDLL:
    """Raises OSError if the cache can't hold it, or what is there can't be loaded even when made anew."""
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            library.unlink()
    compile_to(library, source, compiler)
    return ctypes.CDLL(str(library))


def compile_to(library: Path, source: Path, compiler: str) -> None:
    """Raises CannotCompile if the compiler fails and OSError if the place can't be written to."""
    handle, draft = tempfile.mkstemp(prefix=f".{library.stem}-", suffix=".so", dir=library.parent)
    try:
        command = [compiler, *FLAGS, "-o", draft, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
        if done.returncode:
            raise CannotCompile(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        os.fsync(handle)  # the name must not outlive a power cut that the contents do not
        os.replace(draft, library)
    except subprocess.TimeoutExpired as error:
        raise CannotCompile(f"{compiler} took more than {TIMEOUT_S:.0f} s") from error
    finally:
        os.close(handle)
        Path(draft).unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/tokenwire or ~/.cache/tokenwire, made if need be; None if it can't be ours alone."""
    try:
        root = os.environ.get("XDG_CACHE_HOME", "")
        folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "tokenwire"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    foreign = status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022
    return None if foreign or not os.access(folder, os.W_OK | os.X_OK) else folder


def fingerprint(source: Path, compiler: str) -> str:
    """Digest of everything that decides what the library is."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{compiler}: {error}") from error
    parts = (source.read_bytes(), compiler.encode(), version, " ".join(FLAGS).encode(), cpu_model())
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def cpu_model() -> bytes:
    """Name and features of the CPU: what -march=native looks at. A home may be shared between different machines."""
    telling = (b"model name", b"flags", b"Features", b"CPU implementer", b"CPU part", b"CPU variant", b"isa")
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        lines = []
    found = sorted({line for line in lines if line.startswith(telling)})
    return b"\n".join((platform.machine().encode(), *found))
