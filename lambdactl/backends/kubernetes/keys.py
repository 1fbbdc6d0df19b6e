"""SSH keys that are made for one run, or for the jump pod."""

from __future__ import annotations

from .model import KeyPair


def make_key(comment: str) -> KeyPair:
    """A new Ed25519 key pair in OpenSSH's form."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    public = key.export_public_key("openssh").decode().strip()
    return KeyPair(key.export_private_key("openssh").decode(), public)
