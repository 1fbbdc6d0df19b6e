# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible filter: nvcc's code generation flags for a list of compute capabilities."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.errors import AnsibleFilterError

sys.path.append(str(Path(__file__).resolve().parents[3]))  # a checkout where lambdactl is not installed

from lambdactl.provision.gencode import gencode


def flags(capabilities, nvcc):
    """{"flags": ...} of lambdactl.provision.gencode, or {"error": sentence} where the compiler does not fit."""
    try:
        return {"flags": gencode(list(capabilities), nvcc)}
    except ValueError as error:
        return {"error": str(error)}
    except TypeError as error:
        raise AnsibleFilterError("lambdactl_gencode wants a list of compute capabilities.") from error


class FilterModule:
    """lambdactl_gencode"""

    def filters(self):
        return {"lambdactl_gencode": flags}
