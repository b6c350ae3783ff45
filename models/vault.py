"""Seals texts that must not be readable in the database, with keys from the settings or from a file of our own."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from models.errors import UnavailableError, UsageError
from models.settings import Settings

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

KEY_FILE = "secret.key"
LOCK_FILE = "secret.lock"
WRONG_KEY = f"sealed with a key that SHOPCRAWL_SECRET_KEY (without it: DATA_DIR/{KEY_FILE}) does not hold"


@cache
def _cryptography() -> ModuleType:
    """Imported when it is needed: it takes 7 MB, and workers of sources without sessions never seal anything."""
    from cryptography import fernet  # noqa: PLC0415

    return fernet


def new_key() -> str:
    """A key for SHOPCRAWL_SECRET_KEY."""
    return str(_cryptography().Fernet.generate_key().decode())


class Vault:
    """Seals with the newest key and opens with any.

    The keys are those of SHOPCRAWL_SECRET_KEY, newest first; without it those in DATA_DIR/secret.key, one a line, which
    is made when something is sealed for the first time, and read anew each time: another process may have rotated it.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises UsageError unless SHOPCRAWL_SECRET_KEY is empty or holds keys."""
        self._given = tuple(key.get_secret_value() for key in settings.secret_key)
        self._folder = settings.data_dir.absolute()
        _fernets(self._given, "SHOPCRAWL_SECRET_KEY holds no Fernet key: `shopcrawl session key` makes one")

    @property
    def uses_file(self) -> bool:
        """Whether the keys come from the file in the data folder."""
        return not self._given

    def seal(self, texts: Sequence[str]) -> list[str]:
        """Each text sealed, as ASCII. Raises UsageError if the key file cannot be used."""
        ring = self._ring() or self._make_file()
        return [ring.encrypt(text.encode()).decode() for text in texts]

    def open(self, sealed: Sequence[bytes]) -> list[str | None]:
        """Each text, or None where no key opens it. Raises UsageError if the key file cannot be used."""
        ring = self._ring()
        return [None if ring is None else _opened(ring, token) for token in sealed]

    def reseal(self, sealed: Sequence[bytes]) -> list[str | None]:
        """Each one sealed anew with the newest key, or None where no key opens it."""
        texts = self.open(sealed)
        fresh = iter(self.seal([text for text in texts if text is not None]))
        return [None if text is None else next(fresh) for text in texts]

    @contextlib.contextmanager
    def rotation(self) -> Iterator[None]:
        """Reseal everything inside: a key file gets a new key first, and keeps only the one before besides it.

        That one stays for whoever is sealing right now. If the body fails, every key stays.
        """
        if not self.uses_file:
            yield
            return
        with self._lock():
            keys = [new_key(), *self._read_file()]
            self._write_file(keys)
            yield
            self._write_file(keys[:2])

    def _ring(self) -> "MultiFernet | None":
        """The keys at hand; None if there are none yet."""
        damaged = f"{self._file}: holds no Fernet key: restore it, or remove it and set all sessions anew"
        fernets = _fernets(self._given or self._read_file(), damaged)
        return _cryptography().MultiFernet(fernets) if fernets else None

    def _make_file(self) -> "MultiFernet":
        with self._lock():
            ring = self._ring()
            if ring is None:
                self._write_file([new_key()])
                ring = self._ring()
        if ring is None:
            raise UnavailableError(f"{self._file}: was removed while it was being used")
        return ring

    @property
    def _file(self) -> Path:
        return self._folder / KEY_FILE

    def _read_file(self) -> list[str]:
        """The keys in the file, none if there is no file; one without a key counts as damaged."""
        try:
            with self._file.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise UsageError(f"{self._file}: others may read it: chmod 600 {self._file}")
                return file.read().decode(errors="replace").split() or [""]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"{self._file}: {error.strerror}") from None

    def _write_file(self, keys: Iterable[str]) -> None:
        """Replace the file as a whole: whoever reads it finds the old keys or the new ones, and a crash loses none."""
        draft = self._file.with_suffix(".new")
        with _explained(self._file):
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write("".join(f"{key}\n" for key in keys))
                file.flush()
                os.fsync(descriptor)
            draft.replace(self._file)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time writes the file; the kernel frees the lock when its holder ends, however it ends."""
        with _explained(self._file):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _fernets(keys: Iterable[str], complaint: str) -> "list[Fernet]":
    try:
        return [_cryptography().Fernet(key) for key in keys]
    except ValueError:  # its text may repeat parts of the key
        raise UsageError(complaint) from None


def _opened(ring: "MultiFernet", token: bytes) -> str | None:
    try:
        return ring.decrypt(token).decode()
    except _cryptography().InvalidToken:
        return None


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
