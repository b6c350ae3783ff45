"""The sellers' sessions: drawn from the seed, ended and renewed at run time."""

from hashlib import blake2b
from typing import NamedTuple

from tests.simulator.top.errors import TopError


class Grant(NamedTuple):
    """What a token stands for: the app it was given to, its seller, and whose goods it shows."""

    app: str
    owner: str
    goods: str


class Sessions:
    """Which token means which seller to which app."""

    def __init__(self, seed: int, fixed: dict[str, str]) -> None:
        self._seed = seed
        self._fixed = fixed  # nick -> first session of the first app, where it is not drawn
        self._generation: dict[str, int] = {}
        self._goods: dict[str, str] = {}
        self._known: dict[str, tuple[str, str]] = {}
        self._ended: dict[str, str] = {}  # token -> sub code
        self._left: dict[str, tuple[int, str]] = {}  # nick -> calls until the sub code

    def token(self, app: str, nick: str, *, first_app: bool = True) -> str:
        """Return the session in force of a seller for an app, also where it has ended."""
        generation = self._generation.get(nick, 0)
        token = self._fixed.get(nick, "") if first_app and not generation else ""
        if not token:
            text = f"session|{self._seed}|{app}|{nick}|{generation}"
            token = "6100" + blake2b(text.encode(), digest_size=26).hexdigest()
        self._known[token] = (app, nick)
        return token

    def owner(self, token: str) -> str | None:
        """Return the seller a token was ever issued to."""
        return self._known[token][1] if token in self._known else None

    def resolve(self, token: str, app: str) -> Grant:
        """Return what a token grants; TopError 26 without one, 27 where it grants nothing."""
        if not token:
            raise TopError(26)
        if token not in self._known:
            raise TopError(27, "invalid-sessionkey")
        if token in self._ended:
            raise TopError(27, self._ended[token])
        owned_by, nick = self._known[token]
        if app and owned_by != app:
            raise TopError(27, "sessionkey-not-generated-by-server")
        return Grant(owned_by, nick, self._goods.get(nick, nick))

    def use(self, nick: str) -> None:
        """Count a call; TopError 27 once the calls left by `expire` are used up."""
        if nick not in self._left:
            return
        calls, sub_code = self._left[nick]
        if calls == 0:
            self.expire(nick, 0, sub_code)
            raise TopError(27, sub_code)
        self._left[nick] = (calls - 1, sub_code)

    def expire(self, nick: str, after: int, sub_code: str) -> None:
        """End all sessions of a seller, now or after so many more calls."""
        if after:
            self._left[nick] = (after, sub_code)
            return
        self._left.pop(nick, None)
        for token, (_, owner) in self._known.items():
            if owner == nick:
                self._ended.setdefault(token, sub_code)

    def renew(self, nick: str) -> None:
        """Give a seller new sessions; the old ones end."""
        self.expire(nick, 0, "session-expired")
        self._generation[nick] = self._generation.get(nick, 0) + 1

    def mix_up(self, nick: str, goods: str) -> None:
        """Let a seller's session show another's goods."""
        self._goods[nick] = goods
