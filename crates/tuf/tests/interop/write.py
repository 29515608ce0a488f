"""Write a small repository with python-tuf 7.0.0 into the folder given: what tests/interop.rs reads.

All keys are made for this run, sign it, and are forgotten: only public keys and signatures are recorded.
"""

import datetime
import hashlib
import pathlib
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, Signature, Signer, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

out = pathlib.Path(sys.argv[1])
expires = datetime.datetime(2126, 1, 1, tzinfo=datetime.timezone.utc)
form = JSONSerializer(compact=True)


class P384(Signer):
    """securesystemslib verifies P-384, but its CryptoSigner does not sign with it."""

    def __init__(self):
        self._private = ec.generate_private_key(ec.SECP384R1())
        self.public_key = SSlibKey.from_crypto(self._private.public_key(), scheme="ecdsa-sha2-nistp384")

    public_key = None

    @classmethod
    def from_priv_key_uri(cls, *_):
        raise NotImplementedError

    def sign(self, payload):
        return Signature(self.public_key.keyid, self._private.sign(payload, ec.ECDSA(hashes.SHA384())).hex())


def publish(role, md, signers):
    for signer in signers:
        md.sign(signer, append=True)
    name = f"{role}.json" if role == "timestamp" else f"{md.signed.version}.{role}.json"
    data = md.to_bytes(form)
    (out / "metadata" / name).write_bytes(data)
    return MetaFile.from_data(md.signed.version, data, ["sha256", "sha512"])


def target(role, path, content, algorithms, custom=None):
    file = TargetFile.from_data(path, content, algorithms)
    if custom:
        file.unrecognized_fields["custom"] = custom
    role.targets[path] = file
    for name in file.get_prefixed_paths():
        place = out / "targets" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


(out / "metadata").mkdir(parents=True)
rsa, ecdsa, big = CryptoSigner.generate_rsa(), CryptoSigner.generate_ecdsa(), P384()
ed, online, second = (CryptoSigner.generate_ed25519() for _ in range(3))

root = Root(expires=expires)
for signer in (rsa, ed, ecdsa):
    root.add_key(signer.public_key, "root")
root.roles["root"].threshold = 2
root.add_key(online.public_key, "timestamp")
root.add_key(ecdsa.public_key, "snapshot")
root.add_key(big.public_key, "targets")
publish("root", Metadata(root), (rsa, ed))
root.version = 2
root.revoke_key(ed.public_key.keyid, "root")
root.add_key(second.public_key, "root")
publish("root", Metadata(root), (rsa, ecdsa, second))

targets, team, bins = Targets(expires=expires), Targets(expires=expires), Targets(expires=expires)
target(targets, "top.txt", b"named by targets", ["sha256"])
target(team, "team/a b.bin", b"named by team", ["sha512"], {"note": 'é "quoted" \\ \n', "n": [1, -2, None, True]})
target(bins, "bins/0", b"named by bins", ["sha256", "sha512"])
targets.delegations = Delegations(
    {},
    {
        "team": DelegatedRole("team", [], 2, False, paths=["team/?*"]),
        # SHA-256 of "bins/0" begins with this
        "bins": DelegatedRole("bins", [], 1, True, path_hash_prefixes=[hashlib.sha256(b"bins/0").hexdigest()[:3]]),
    },
)
for signer in (rsa, second):
    targets.add_key(signer.public_key, "team")
targets.add_key(online.public_key, "bins")
snapshot = Snapshot(expires=expires, unrecognized_fields={"x-note": "kept"})
snapshot.meta["team.json"] = publish("team", Metadata(team), (rsa, second))
snapshot.meta["bins.json"] = publish("bins", Metadata(bins), (online,))
snapshot.meta["targets.json"] = publish("targets", Metadata(targets), (big,))
timestamp = Timestamp(expires=expires)
timestamp.snapshot_meta = publish("snapshot", Metadata(snapshot), (ecdsa,))
publish("timestamp", Metadata(timestamp), (online,))
