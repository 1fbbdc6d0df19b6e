"""The one error of this package."""

from __future__ import annotations

from lambdactl.errors import EXIT_USAGE, LambdactlError


class NcclOutputError(LambdactlError):
    """The input holds no nccl-tests output, or a JSON report that cannot be read; exit code 2."""

    exit_code = EXIT_USAGE
