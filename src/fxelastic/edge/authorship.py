"""Signatures over a bundle's manifest: who made it, in which order, and until when it counts.

The manifest lists the digest of every file, so its signature covers all of them, and any subset of
the files can be verified without the network. The signature is a file beside the manifest, in the
envelope format DSSE, by ed25519.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxelastic.errors import BundleError, UsageError
from fxelastic.extras import required
from fxelastic.files import read_regular, replace_file
from fxelastic.spec.bounded_json import loads
from fxelastic.spec.bundle_files import MANIFEST_NAME, SIGNATURE_NAME
from fxelastic.spec.json_fields import Fields

logger = logging.getLogger(__name__)

SCHEMA = "fxelastic.signature/1"
_TYPE = "application/vnd.fxelastic.signature+json"
_RECORD_SCHEMA = "fxelastic.counters/1"
# A signature has about 500 bytes, a key 120.
_MAX_BYTES = 2**16
# The year 9999.
_MAX_TIME_S = 253_000_000_000
_UTC = datetime.timezone.utc
_SHA256 = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class ManifestSignature:
    """A statement about a bundle, which a key has signed.

    Attributes:
        manifest_sha256: The digest of ``manifest.json``.
        counter: A number that grows with each release; a device refuses lower ones afterwards.
        expires_s: When the signature ends, in seconds since 1970; None for never.
        key: The SHA-256 digest of the public key that signed, in hexadecimal.
    """

    manifest_sha256: str
    counter: int
    expires_s: int | None
    key: str

    def to_json(self) -> dict[str, Any]:
        """The signature as an object for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        end = "never expires"
        if self.expires_s is not None:
            end = f"expires {_time(self.expires_s)}"
        return f"key {self.key[:16]}, counter {self.counter}, {end}"


def sign(
    folder: Path,
    manifest_sha256: str,
    key: str | os.PathLike[str],
    *,
    counter: int,
    expires_s: int | None = None,
) -> ManifestSignature:
    """Sign a bundle, and write the signature into its folder.

    Args:
        folder: The bundle's folder.
        manifest_sha256: The digest of its manifest.
        key: The file of a private ed25519 key, PEM without a password.
        counter: See `ManifestSignature`.
        expires_s: See `ManifestSignature`.

    Returns:
        The signature.

    Raises:
        UsageError: The key is not usable, a number is out of range, the file can't be written, or
            cryptography is not installed.
    """
    if not 0 <= counter < _MAX_TIME_S or not 0 <= (expires_s or 0) < _MAX_TIME_S:
        raise UsageError(
            "the counter and the end of a signature are out of range",
            expected=f"integers from 0 to {_MAX_TIME_S}",
            got=f"counter={counter}, expires_s={expires_s}",
        )
    private = _private_key(Path(key))
    found = ManifestSignature(manifest_sha256, counter, expires_s, _key_id(private.public_key()))
    stated = {name: value for name, value in asdict(found).items() if name != "key"}
    payload = json.dumps({"schema": SCHEMA, **stated}, sort_keys=True).encode()
    envelope = {
        "payloadType": _TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": found.key, "sig": base64.b64encode(private.sign(_signed(payload))).decode()}
        ],
    }
    try:
        replace_file(folder / SIGNATURE_NAME, json.dumps(envelope, indent=1).encode())
    except OSError as e:
        raise UsageError(
            f"the signature can't be written to {folder}",
            expected="a writable folder, on a disk with free space",
            got=e.strerror or str(e),
        ) from e
    return found


def check(
    folder: Path,
    manifest_sha256: str,
    keys: Sequence[str | os.PathLike[str]],
    *,
    now_s: float,
    least_counter: int = 0,
) -> ManifestSignature:
    """Check that one of some keys signed a bundle, and that the signature counts.

    The highest counter of each key is recorded beside the bundle, in ``BUNDLE.counters.json``;
    where that can't be written, a warning says so.

    Args:
        folder: The bundle's folder.
        manifest_sha256: The digest of its manifest.
        keys: Files of public ed25519 keys, PEM.
        now_s: The time, in seconds since 1970.
        least_counter: The lowest counter to accept.

    Returns:
        The signature.

    Raises:
        UsageError: A key is not usable, or cryptography is not installed.
        BundleError: The bundle is not signed, was changed, or was signed by another key; the
            signature has ended, or an earlier one had a higher counter.
    """
    trusted = {}
    for path in keys:
        key = _public_key(Path(path))
        trusted[_key_id(key)] = key
    found = _verified(folder, trusted)
    if found.manifest_sha256 != manifest_sha256:
        raise _refused(
            folder,
            "was changed after it was signed",
            f"sha256 {found.manifest_sha256} of {MANIFEST_NAME}",
            f"sha256 {manifest_sha256}",
        )
    if found.expires_s is not None and now_s >= found.expires_s:
        expected = f"a time before {_time(found.expires_s)}"
        raise _refused(folder, "has an expired signature", expected, _time(now_s))
    record = _record_of(folder)
    counters = _read_record(record)
    least = max(least_counter, counters.get(found.key, 0))
    if found.counter < least:
        expected, got = f"a counter of at least {least}", f"{found.counter}"
        raise _refused(folder, "is older than one that was accepted before", expected, got)
    if found.counter > counters.get(found.key, -1):
        _write_record(record, {**counters, found.key: found.counter})
    return found


def _verified(folder: Path, trusted: dict[str, Any]) -> ManifestSignature:
    """The statement of a folder's signature, verified by one of some keys."""
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE_NAME
    try:
        data = read_regular(path)
    except FileNotFoundError as e:
        raise _refused(folder, "is not signed", f"a file {SIGNATURE_NAME}", "no such file") from e
    except OSError as e:
        raise _refused(folder, "has no readable signature", "a file", str(e)) from e
    try:
        envelope = Fields(_object(data), SIGNATURE_NAME, "")
        kind = envelope.text("payloadType")
        payload = base64.b64decode(envelope.text("payload"), validate=True)
        pairs = envelope.objects("signatures", lambda item: (item.text("keyid"), item.text("sig")))
        signatures = {name: base64.b64decode(sig, validate=True) for name, sig in pairs}
        if kind != _TYPE:
            raise ValueError(f"payloadType {kind!r}")
    except (ValueError, BundleError) as e:
        raise _refused(folder, "has a damaged signature", "an envelope of DSSE", _what(e)) from e
    for name in signatures.keys() & trusted.keys():
        try:
            trusted[name].verify(signatures[name], _signed(payload))
        except InvalidSignature as e:
            raise _refused(
                folder, "has a wrong signature", "the signature that its key made", "another"
            ) from e
        return _statement(folder, payload, name)
    raise _refused(
        folder,
        "was not signed by a trusted key",
        ", ".join(sorted(trusted)) or "a trusted key",
        ", ".join(sorted(signatures)) or "no key",
    )


def _statement(folder: Path, payload: bytes, key: str) -> ManifestSignature:
    try:
        fields = Fields(_object(payload), SIGNATURE_NAME, "payload")
        fields.text("schema", SCHEMA, SCHEMA)
        end = fields.take("expires_s")
        return ManifestSignature(
            fields.text("manifest_sha256", _SHA256, "a sha256"),
            fields.count("counter", high=_MAX_TIME_S),
            None if end is None else fields.count("expires_s", high=_MAX_TIME_S),
            key,
        )
    except (ValueError, BundleError) as e:
        raise _refused(folder, "has an unknown signature", SCHEMA, _what(e)) from e


def _object(data: bytes) -> dict[str, Any]:
    value = loads(data, _MAX_BYTES)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _signed(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_TYPE), _TYPE.encode(), len(payload), payload)


def _record_of(folder: Path) -> Path:
    place = Path(os.path.abspath(folder))
    return place.with_name(f"{place.name}.counters.json")


def _read_record(path: Path) -> dict[str, int]:
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise _damaged_record(path, str(e)) from e
    try:
        fields = Fields(_object(data), path.name, "")
        fields.text("schema", _RECORD_SCHEMA, _RECORD_SCHEMA)
        counters = fields.object("counters")
        return {name: counters.count(name, high=_MAX_TIME_S) for name in counters.value}
    except (ValueError, BundleError) as e:
        raise _damaged_record(path, _what(e)) from e


def _what(error: Exception) -> str:
    """An error's text without advice of its own."""
    return error.what if isinstance(error, BundleError) else str(error)


def _time(seconds: float) -> str:
    """A time, in s since 1970, for people."""
    return f"{datetime.datetime.fromtimestamp(seconds, _UTC):%Y-%m-%d %H:%M} UTC"


def _damaged_record(path: Path, got: str) -> BundleError:
    return BundleError(
        f"{path}, the record of accepted counters, can't be read",
        expected=f"a file of schema {_RECORD_SCHEMA}",
        got=got,
        fix="delete it only if you know that the bundle is the latest",
    )


def _write_record(path: Path, counters: dict[str, int]) -> None:
    record = {"schema": _RECORD_SCHEMA, "counters": dict(sorted(counters.items()))}
    try:
        replace_file(path, json.dumps(record, indent=1).encode())
    except OSError as e:
        logger.warning(
            "%s can't be written (%s): older bundles will be accepted here", path, e.strerror
        )


def _private_key(path: Path) -> Any:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _key(path, lambda data: load_pem_private_key(data, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, "a private ed25519 key", type(key).__name__)
    return key


def _public_key(path: Path) -> Any:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _key(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable(path, "a public ed25519 key", type(key).__name__)
    return key


def _key(path: Path, load: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(read_regular(path.resolve()))
    except OSError as e:
        raise _unusable(path, "a file with a key", e.strerror or str(e)) from e
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _unusable(path, "a key in PEM, without a password", str(e)[:200]) from e


def _unusable(path: Path, expected: str, got: str) -> UsageError:
    return UsageError(
        f"the key {path} can't be used",
        expected=expected,
        got=got,
        fix="openssl genpkey -algorithm ed25519 -out key.pem makes a private key, and "
        "openssl pkey -in key.pem -pubout -out key.pub its public key",
    )


def _require_cryptography() -> None:
    required("cryptography", "signatures need cryptography", "sign")


def _key_id(key: Any) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _refused(folder: Path, problem: str, expected: str, got: str) -> BundleError:
    return BundleError(
        f"the bundle {folder} {problem}",
        expected=expected,
        got=got,
        fix="get the bundle again from its author; fxelastic sign signs bundles of your own",
    )
