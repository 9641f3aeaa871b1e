"""One thread per process, no user cache touched."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["SFD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _every_audit_is_of_the_schema(monkeypatch):
    """Whatever audit a test makes is checked as `sfd validate` would."""
    from sfd import seal

    written = seal.write

    def write(path, audit):
        sealed = written(path, audit)
        seal.check(seal.read(path), str(path))
        return sealed

    monkeypatch.setattr(seal, "write", write)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
