"""The C module behind `socket`, which loads `selectors` and `enum` for what is not needed here; see `light`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    try:
        import _socket as socket
    except ImportError:
        import socket

__all__ = ["accept", "socket"]


def accept(server: Any) -> socket.socket:
    """The next connection of a listening socket, not inherited by programs."""
    descriptor, _ = server._accept()  # what `socket.accept` is made of
    return socket.socket(fileno=descriptor)
