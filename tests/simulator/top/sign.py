"""The platform's signature, computed from the documented rule alone."""

import hashlib
import hmac
from collections.abc import Mapping


def signature(params: Mapping[str, str], secret: str, sign_method: str) -> str | None:
    """Return the upper-case signature of all parameters but `sign` and empty ones; None for an unknown method."""
    pairs = sorted((name, value) for name, value in params.items() if name != "sign" and name and value)
    text = "".join(name + value for name, value in pairs).encode("utf-8", "surrogatepass")
    key = secret.encode()
    match sign_method:
        case "md5":
            return hashlib.md5(key + text + key).hexdigest().upper()
        case "hmac":
            return hmac.new(key, text, hashlib.md5).hexdigest().upper()
        case "hmac-sha256":
            return hmac.new(key, text, hashlib.sha256).hexdigest().upper()
    return None


def is_signed(params: Mapping[str, str], secret: str) -> bool:
    """Say whether `sign` fits the rest; without `sign_method` it must be md5."""
    wanted = signature(params, secret, params.get("sign_method") or "md5")
    return wanted is not None and wanted == params.get("sign", "")
