"""How a call to the Taobao Open Platform is signed."""

import hashlib
import hmac
from collections.abc import Mapping


def sign(params: Mapping[str, str], secret: str, method: str) -> str:
    """The upper-case hex signature of all parameters but `sign`; `method` is md5, hmac or hmac-sha256.

    Names and values are joined as they are, in the order of their names. Only md5 wraps them in the secret.
    """
    joined = "".join(name + params[name] for name in sorted(params) if name != "sign").encode()
    key = secret.encode()
    if method == "md5":
        return hashlib.md5(key + joined + key, usedforsecurity=False).hexdigest().upper()
    return hmac.new(key, joined, _DIGESTS[method]).hexdigest().upper()


_DIGESTS = {"hmac": "md5", "hmac-sha256": "sha256"}
