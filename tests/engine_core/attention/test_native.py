"""Compiling at first start: the cache folder, and what happens where there is none."""

import ctypes
import os
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_core.attention import native

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenwire"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def answer(library: ctypes.CDLL) -> int:
    return int(library.answer())


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(native, "compile_to", refuse)


def test_it_is_compiled_once_into_a_private_folder(
    source: Path, folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(native.load(source)) == 42
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (library,) = folder.iterdir()
    assert library.name.startswith("answer-")
    assert list(scratch.iterdir()) == []
    forbid_compiling(monkeypatch)
    assert answer(native.load(source)) == 42


def test_another_source_compiler_or_cpu_is_another_library(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("g++") or ""
    first = native.fingerprint(source, compiler)
    assert native.fingerprint(source, compiler) == first
    monkeypatch.setattr(native, "cpu_model", lambda: b"another CPU")
    second = native.fingerprint(source, compiler)
    source.write_text('extern "C" int answer() { return 43; }\n')
    third = native.fingerprint(source, compiler)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    assert len({first, second, third, native.fingerprint(source, compiler)}) == 4
    assert answer(native.load(source)) == 43


def test_the_cpu_s_model_names_its_features() -> None:
    assert len(native.cpu_model().splitlines()) > 1


def test_without_a_cache_folder_a_temporary_one_does(
    source: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file
    assert native.cache_folder() is None
    assert answer(native.load(source)) == 42
    assert list(scratch.iterdir()) == []  # nothing is left behind
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1/no/such/place")
    assert native.cache_folder() is None


def test_a_relative_or_missing_setting_means_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        assert native.cache_folder() == tmp_path / ".cache" / "tokenwire"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert native.cache_folder() == tmp_path / ".cache" / "tokenwire"


def test_a_folder_that_others_can_write_to_is_not_trusted(source: Path, folder: Path, scratch: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    assert native.cache_folder() is None
    assert answer(native.load(source)) == 42
    assert list(folder.iterdir()) == []


def test_a_folder_of_someone_else_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, mode=0o700)
    assert native.cache_folder() == folder
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert native.cache_folder() is None


def test_a_broken_library_is_made_anew(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    library = folder / f"answer-{native.fingerprint(source, shutil.which('g++') or '')}.so"
    library.write_bytes(b"\x7fELF, or what was left of it")
    assert answer(native.load(source)) == 42
    assert library.stat().st_size > 1000


def test_many_at_once_leave_one_library(source: Path, folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(native.load, [source] * 4))
    assert [answer(library) for library in libraries] == [42] * 4
    assert len(list(folder.iterdir())) == 1


def test_no_compiler_and_no_program_are_reported(
    source: Path, folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text("#error not today\n")
    with pytest.raises(native.CannotCompile, match="not today"):
        native.load(source)
    assert list(folder.iterdir()) == list(scratch.iterdir()) == []
    with monkeypatch.context() as context:
        context.setattr(native, "TIMEOUT_S", 1e-6)
        with pytest.raises(native.CannotCompile):
            native.load(source)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.CannotCompile, match="no C\\+\\+ compiler"):
        native.load(source)
