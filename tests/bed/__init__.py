"""The wide bed: real sshd processes on loopback that look like a jump host with any number of nodes behind it."""

from tests.bed.bed import Bed
from tests.bed.sshd import Sshd

__all__ = ["Bed", "Sshd"]
