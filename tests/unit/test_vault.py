"""The vault: what it seals only its keys open, the key file is private and never half written, no error shows a key."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from models.errors import UsageError
from models.settings import Settings, load_settings
from models.vault import KEY_FILE, Vault, new_key

TEXT = "6100e5f-canary-of-a-session"

A_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def settings(folder: Path, *keys: str) -> Settings:
    return load_settings(data_dir=folder, secret_key=",".join(keys))


def sealed(vault: Vault, text: str = TEXT) -> bytes:
    return vault.seal([text])[0].encode()


def test_what_is_sealed_shows_nothing_and_opens_again(tmp_path: Path) -> None:
    vault = Vault(settings(tmp_path, new_key()))
    token = sealed(vault)
    assert b"canary" not in token and token.isascii()
    assert vault.open([token, sealed(vault, "秘密")]) == [TEXT, "秘密"]
    assert not list(tmp_path.iterdir()), "no file as long as the settings hold a key"


def test_the_newest_key_seals_and_each_opens(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    before, both = Vault(settings(tmp_path, old)), Vault(settings(tmp_path, f" {new} ", old))
    only_new = Vault(settings(tmp_path, new))
    assert both.open([sealed(before)]) == [TEXT]
    assert before.open([sealed(both)]) == [None]
    assert only_new.open([sealed(both), sealed(before), b"", b"no token"]) == [TEXT, None, None, None]
    (resealed, foreign) = both.reseal([sealed(before), sealed(Vault(settings(tmp_path, new_key())))])
    assert resealed is not None and only_new.open([resealed.encode()]) == [TEXT]
    assert foreign is None


def test_the_key_file_is_made_private_with_the_first_sealing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    vault = Vault(settings(folder))
    assert vault.open([b"anything"]) == [None]
    assert not folder.exists(), "nothing is made for opening"
    token = sealed(vault)
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert Vault(settings(folder)).open([token]) == [TEXT]
    assert sorted(path.name for path in folder.iterdir()) == [KEY_FILE, "secret.lock"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_a_key_file_that_a_loose_umask_could_open_is_still_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        sealed(Vault(settings(tmp_path)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_many_that_seal_first_at_once_share_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = list(pool.map(lambda _: sealed(Vault(settings(tmp_path))), range(32)))
    assert Vault(settings(tmp_path)).open(tokens) == [TEXT] * 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_that_others_may_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    token = sealed(Vault(settings(tmp_path)))
    (tmp_path / KEY_FILE).chmod(mode)
    for use in (lambda vault: vault.open([token]), sealed):
        with pytest.raises(UsageError, match=f"others may read it: chmod 600 {tmp_path / KEY_FILE}"):
            use(Vault(settings(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"\n", b"canary-no-key", b"\xff\xfe", A_KEY.encode() + b"\ncanary"])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    for use in (lambda vault: vault.open([b"x"]), sealed):
        with pytest.raises(UsageError, match="holds no Fernet key") as refused:
            use(Vault(settings(tmp_path)))
        assert "canary" not in str(refused.value) and str(path) in str(refused.value)
    assert path.read_bytes() == content


def test_a_key_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).mkdir(mode=0o700)
    with pytest.raises(UsageError, match=KEY_FILE):
        sealed(Vault(settings(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=KEY_FILE):
        sealed(Vault(settings(tmp_path / "file")))


@pytest.mark.parametrize("keys", [("canary",), (A_KEY, "canary"), (A_KEY[:-4],), ("käy",)])
def test_a_setting_that_is_no_key_is_refused_with_the_cure(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with pytest.raises(
        UsageError, match="SHOPCRAWL_SECRET_KEY holds no Fernet key: `shopcrawl session key`"
    ) as refused:
        Vault(settings(tmp_path, *keys))
    assert not any(key in str(refused.value) for key in keys)


def test_a_rotation_of_the_key_file_keeps_the_key_before_and_drops_older_ones(tmp_path: Path) -> None:
    vault = Vault(settings(tmp_path))
    first = sealed(vault)
    with vault.rotation():
        assert vault.open([first]) == [TEXT]
        second = sealed(vault)
    assert vault.open([first, second]) == [TEXT, TEXT], "whoever sealed during the rotation had the key before"
    with vault.rotation():
        pass
    assert vault.open([first, second]) == [None, TEXT]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_a_rotation_that_fails_loses_no_key(tmp_path: Path) -> None:
    vault = Vault(settings(tmp_path))
    tokens = [sealed(vault)]
    for _ in range(3):
        with pytest.raises(RuntimeError), vault.rotation():
            tokens.append(sealed(vault))
            raise RuntimeError
    assert vault.open(tokens) == [TEXT] * 4
    (tmp_path / "secret.new").write_text("left by a crash")
    with vault.rotation():
        tokens = [(token or "").encode() for token in vault.reseal(tokens)]
    assert vault.open(tokens) == [TEXT] * 4


def test_a_rotation_with_keys_from_the_settings_touches_no_file(tmp_path: Path) -> None:
    with Vault(settings(tmp_path, new_key())).rotation():
        pass
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_shown_of_a_vault_holds_a_key(tmp_path: Path) -> None:
    key = new_key()
    assert Fernet(key)
    assert key not in repr(Vault(settings(tmp_path, key))) and key not in repr(settings(tmp_path, key))
