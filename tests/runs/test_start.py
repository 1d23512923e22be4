"""What happens before a run begins: the cache of compiled programs."""

import os

import jax
import pytest

from medjax import files
from medjax.runs.start import programs, rehearsal


@pytest.fixture
def chosen(monkeypatch):
    """The folder that jax is told, without changing the tests' own."""
    found = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.append((name, value)))
    return found


def test_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch, chosen):
    monkeypatch.delenv("MEDJAX_COMPILE_CACHE", raising=False)
    own = jax.config.jax_compilation_cache_dir
    assert str(programs.keep()) == own and not chosen  # jax' own setting stays
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    monkeypatch.setenv("MEDJAX_HOME", str(tmp_path / "home"))
    folder = programs.keep()
    assert folder == tmp_path / "home" / "programs" / programs.processor() and folder.is_dir()
    autotuned = ("jax_persistent_cache_enable_xla_caches", "all")
    assert chosen == [("jax_compilation_cache_dir", str(folder)), autotuned]
    monkeypatch.setenv("MEDJAX_COMPILE_CACHE", str(tmp_path / "given"))
    assert programs.keep() == tmp_path / "given"
    monkeypatch.setenv("MEDJAX_COMPILE_CACHE", "off")
    assert programs.keep() is None and len(chosen) == 4
    monkeypatch.setenv("MEDJAX_COMPILE_CACHE", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    assert programs.keep() is None


def test_programs_used_longest_ago_are_removed(tmp_path):
    for k in range(4):
        path = tmp_path / "machine" / f"{k}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000 - k, 1000 - k))
    programs.prune(tmp_path, 25)
    assert sorted(p.name for p in (tmp_path / "machine").iterdir()) == ["0", "1"]
    programs.prune(tmp_path, 25)
    assert len(list((tmp_path / "machine").iterdir())) == 2


def test_the_users_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDJAX_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.home() == tmp_path / "medjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.home().parts[-2:] == (".cache", "medjax")
    assert rehearsal.COMMAND.startswith("python")
