"""Evidence for the doctor's checks, all of a node in one pass: nothing is judged here, and nothing is changed.

Programs are started first and read last, so that they run at once; each has a time limit, and one that does not answer
is evidence itself (`programs[name].state` is "hung"). Sizes in bytes, ages and times in seconds.
"""

from __future__ import annotations

import time

from . import doctor_deep, doctor_fabric, doctor_gpu, doctor_kernel, doctor_system, doctor_tools
from .probe import probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def examine(*, deep: bool = False) -> dict[str, Any]:
    """Everything that the checks ask for; `deep` also runs tests that load the GPUs and the network for minutes.

    `received_at` and `answered_at` are the node's clock around the work, from which the controller works out the skew.
    """
    received = time.time()
    tools = doctor_tools.start()
    facts = probe({})
    ports = doctor_fabric.ports()
    evidence = {
        "facts": facts,
        **doctor_system.evidence(),
        "kernel_log": doctor_kernel.evidence(),
        "ib": ports,
        "interfaces": doctor_fabric.interfaces(),
        "pci": doctor_gpu.pci_counts(),
        **tools.evidence(),
        "deep": doctor_deep.evidence(ports) if deep else None,
    }
    return {**evidence, "received_at": received, "answered_at": time.time()}
