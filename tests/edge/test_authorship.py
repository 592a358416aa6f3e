"""Signatures: what is not signed, changed, foreign, older or ended is refused."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge import authorship
from fxelastic.errors import BundleError, UsageError
from tests.edge.bundles import contents, write
from tests.edge.signing import write_keys


def test_without_cryptography_a_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    folder = write(tmp_path / "bundle")
    edge.load(folder)
    with pytest.raises(UsageError, match=r"fxelastic\[sign\]"):
        edge.load(folder, trusted_keys=["key.pub"])
    with pytest.raises(UsageError, match=r"fxelastic\[sign\]"):
        authorship.sign(folder, "0" * 64, "key.pem", counter=1)


class Signed:
    """A signed bundle and its key."""

    def __init__(self, folder: Path) -> None:
        self.folder = write(folder / "bundle")
        self.private, self.public = write_keys(folder)
        self.sign(5)

    @property
    def signature(self) -> Path:
        return self.folder / "manifest.sig.json"

    def sign(self, counter: int, expires_s: int | None = None) -> None:
        digest = edge.load(self.folder).digest
        authorship.sign(self.folder, digest, self.private, counter=counter, expires_s=expires_s)

    def load(self, **options: Any) -> edge.Bundle:
        return edge.load(self.folder, trusted_keys=[self.public], **options)

    def refused(self, match: str, **options: Any) -> None:
        with pytest.raises(BundleError, match=match):
            self.load(**options)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    return Signed(tmp_path)


def test_a_signed_bundle_is_opened_and_says_by_whom(signed: Signed) -> None:
    bundle = signed.load()
    assert bundle.signature is not None
    assert (bundle.signature.counter, bundle.signature.manifest_sha256) == (5, bundle.digest)
    assert edge.load(signed.folder).signature is None
    bundle.verify()


def test_an_unsigned_bundle_is_refused(signed: Signed) -> None:
    signed.signature.unlink()
    signed.refused("is not signed")


def test_another_key_is_refused(signed: Signed, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(BundleError, match="not signed by a trusted key"):
        edge.load(signed.folder, trusted_keys=[other])
    assert edge.load(signed.folder, trusted_keys=[other, signed.public]).signature is not None


def test_a_changed_manifest_is_refused(signed: Signed) -> None:
    manifest = signed.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"Net"', b'"Not"'))
    edge.load(signed.folder)
    signed.refused("was changed after it was signed")


def test_every_flipped_bit_of_a_signature_is_refused(signed: Signed) -> None:
    data = signed.signature.read_bytes()
    n_refused = 0
    for at in range(0, len(data), 5):
        changed = bytearray(data)
        changed[at] ^= 1
        signed.signature.write_bytes(changed)
        try:
            found = signed.load()
        except BundleError:
            n_refused += 1
        else:
            # White space, or the name of a field that nobody reads.
            assert found.signature is not None
            assert found.signature.counter == 5
    assert n_refused > 0.9 * len(data) / 5


def test_a_signature_of_other_bytes_is_wrong(signed: Signed) -> None:
    envelope = json.loads(signed.signature.read_bytes())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    signed.signature.write_text(json.dumps(envelope))
    signed.refused("has a wrong signature")


def test_a_bundle_that_was_rolled_back_is_refused(signed: Signed, tmp_path: Path) -> None:
    old = shutil.copytree(signed.folder, tmp_path / "old")
    signed.sign(6)
    signed.load()
    shutil.rmtree(signed.folder)
    old.rename(signed.folder)
    signed.refused("is older than one that was accepted before")
    edge.load(signed.folder)


def test_a_least_counter_refuses_on_the_first_use_too(signed: Signed) -> None:
    signed.refused("is older", least_counter=6)
    assert signed.load(least_counter=5).signature is not None


def test_a_damaged_record_of_counters_is_refused(signed: Signed) -> None:
    signed.load()
    (signed.folder.parent / "bundle.counters.json").write_text("{}")
    signed.refused("record of accepted counters")


def test_a_record_that_cannot_be_written_is_said(
    signed: Signed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(authorship, "replace_file", full)
    with caplog.at_level(logging.WARNING):
        signed.load()
    assert "older bundles will be accepted" in caplog.text


def test_an_ended_signature_is_refused(signed: Signed) -> None:
    signed.sign(7, int(time.time()) + 1000)
    signed.load()
    signed.sign(7, int(time.time()) - 1)
    signed.refused("has an expired signature")


def test_any_subset_of_the_files_is_verified(signed: Signed) -> None:
    kept, *others = [path for path in contents() if path.endswith(".onnx")]
    for path in others:
        (signed.folder / path).unlink()
    signed.refused("can't be read")
    bundle = signed.load(subset=True)
    assert bundle.missing == set(others)
    bundle.verify()
    (signed.folder / kept).write_bytes(bytes(len(contents()[kept])))
    with pytest.raises(BundleError, match="different digest"):
        signed.load(subset=True).verify()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(signed: Signed, content: bytes) -> None:
    signed.public.write_bytes(content)
    with pytest.raises(UsageError, match=r"the key .*key\.pub can't be used"):
        signed.load()
    with pytest.raises(UsageError, match=r"the key .*key\.pub can't be used"):
        authorship.sign(signed.folder, "0" * 64, signed.public, counter=1)


def test_the_commands_sign_verify_and_require(
    signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, private, public = map(str, (signed.folder, signed.private, signed.public))
    assert main(["sign", bundle, "--key", private, "--expires", "90d", "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)
    assert stated["expires_s"] - stated["counter"] == 90 * 86_400
    assert main(["verify", bundle, "--key", public, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files_verified"] == len(contents())
    assert main(["inspect", bundle, "--require-signature", public]) == 0
    assert main(["sign", bundle, "--key", private, "--counter", "1"]) == 0
    assert main(["verify", bundle, "--key", public]) == 1
    assert "is older than" in capsys.readouterr().err
    signed.signature.unlink()
    assert main(["inspect", bundle, "--require-signature", public]) == 1
    for when in ("soon", "2000-01-01", "0d"):
        assert main(["sign", bundle, "--key", private, "--expires", when]) == 2
