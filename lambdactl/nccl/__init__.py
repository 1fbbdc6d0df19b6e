"""Proof that a cluster is fast: nccl-tests output, bandwidth bounds, the verdict, and an error catalogue.

Usable alone: nothing here needs a fleet, a network or a GPU.

    parser      text or JSON report of nccl-tests -> one typed `Result`
    stats       peak, mean, ranks inferred from the numbers, plateau, outliers
    bounds      what the hardware allows, formulas with their sources
    verdict     PASS / WARN / FAIL / no verdict, with reasons
    catalogue   log text -> known causes and remedies
"""
