"""Output in the layouts of nccl-tests, made to measure: the printf formats are those of its src/util.cu."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
REFERENCE = (HERE / "dstack-lambda-b200-2x8.txt").read_bytes()
GIB = 1 << 30


def number(value: float, width: int) -> str:
    """getFloatStr of util.cu: fewer decimals, then an exponent, to keep the width."""
    for text in (f"{value:{width}.2f}", f"{value:{width}.1f}", f"{value:{width}.0f}"):
        if len(text) <= width:
            return text
    return f"{value:{width}.1e}"


def half(size: int, algbw: float, factor: float, wrong: str = "0", iterations: bool = False) -> str:
    time_us = size / 1e3 / algbw if algbw else 12.0
    text = f"  {number(time_us, 7)}  {number(algbw, 6)}  {number(algbw * factor, 6)}  {wrong:>6}"
    if iterations:
        cells = (time_us * 0.9, time_us * 1.2, time_us * 1.1, 3.25)
        text += "".join(f"  {number(value, 7)}" for value in cells)
    return text


def row(size: int, out: str, into: str, *, redop: str = "sum", root: int = -1, stamp: bool = False) -> str:
    line = f"{size:12d}  {size // 4:12d}  {'float':>8}  {redop:>6}  {root:6d}{out}{into}"
    return line + (f"{'2026-11-23 08:00:00':>21}" if stamp else "")


def output(
    busbw: dict[int, float] | None = None,
    *,
    nodes: int = 2,
    gpus: int = 8,
    ranks: int | None = None,
    gpu: str = "NVIDIA B200",
    name: str = "all_reduce_perf",
    wrong: str = "0",
    iterations: bool = False,
    stamp: bool = False,
    footer: bool = True,
    redop: str = "sum",
    group: int = 0,
) -> str:
    """A whole output; `busbw` maps sizes to GB/s (default: a healthy pair of B200 nodes)."""
    n = nodes * gpus
    busbw = {1 << 20: 17.0, 256 << 20: 540.0, GIB: 677.0, 2 * GIB: 702.0} if busbw is None else busbw
    factor = 2 * (n - 1) / n if n > 1 else 0.0
    lines = [
        "# nccl-tests version 2.19.6 nccl-headers=22807 nccl-library=22807",
        f"# Collective test starting: {name}",
        f"# nThread 1 nGpus 1 minBytes {min(busbw)} maxBytes {max(busbw)} step: 2(factor) warmup iters: 1 iters: 20 "
        "agg iters: 1 validation: 1 graph: 0 unalign: 0",
        "#",
        "# Using devices",
    ]
    for rank in range(n if ranks is None else ranks):
        host = f"gpu-node-{rank // gpus + 1}"
        lines.append(
            f"#  Rank {rank:2d} Group {group if rank else 0:2d} Pid {4000 + rank:6d} on {host:>10} "
            f"device {rank % gpus:2d} [0000:{0x1B + rank % gpus:02x}:00] {gpu}"
        )
    lines += [
        "#",
        f"# {'':>54}           out-of-place                       in-place          ",
        f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}     time   algbw   busbw  #wrong"
        "     time   algbw   busbw  #wrong ",
        f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}     (us)  (GB/s)  (GB/s)             (us)",
    ]
    cells = []
    for size, value in busbw.items():
        algbw = value / factor if factor else value
        cells += [value, value] if factor else [0.0, 0.0]
        part = half(size, algbw, factor, wrong, iterations)
        lines.append(row(size, part, part, redop=redop, stamp=stamp))
    if footer:
        bad = wrong not in ("0", "N/A")
        lines += [
            f"# Out of bounds values : {int(bad)} {'FAILED' if bad else 'OK'}",
            f"# Avg bus bandwidth    : {sum(cells) / len(cells):g} ",
            "#",
            f"# Collective test concluded: {name}",
            "",
            "#",
        ]
    return "\n".join(lines) + "\n"


OLD_LAYOUT = """\
# nThread 1 nGpus 8 minBytes 1073741824 maxBytes 2147483648 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
#   Rank  0 Pid  48592 on gpu-node-1 device  0 [0x06] Tesla V100
#   Rank  1 Pid  48592 on gpu-node-1.cluster.local device  1 [0x07] Tesla V100
#
#                                                     out-of-place                       in-place
#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
  1073741824     268435456   float     sum  14562.0   73.74  129.04  7e-07  14571.0   73.69  128.96  7e-07
  2147483648     536870912   float     sum  29019.0   74.00  129.50  0e+00  29036.0   73.96  129.43  7e-07
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 129.235
#
"""

OLD_GATHER = """\
#       size         count    type     time   algbw   busbw  error     time   algbw   busbw  error
     1048576          4096   float    113.8    9.21    8.06  0e+00    112.4    9.33    8.16  0e+00
     2097152          8192   float    131.9   15.90   13.91  0e+00    130.1   16.12   14.10  0e+00
"""

OLD_BROADCAST = """\
#       size         count    type    root     time   algbw   busbw  error     time   algbw   busbw  error
     1048576        262144   float       0    113.8    9.21    9.21  0e+00    112.4    9.33    9.33  0e+00
"""

CPU_BENCHMARK = """\
# all_reduce_cpu version 1.0: lambdactl's CPU benchmark over MPI, in the layout of nccl-tests; no GPU takes part
# Collective test starting: all_reduce_cpu
# nThread 1 nGpus 0 minBytes 1048576 maxBytes 2147483648 step: 2048(factor) warmup iters: 1 iters: 5 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid   2101 on   worker-0 device  0 [cpu] CPU
#  Rank  1 Group  0 Pid   1733 on   worker-1 device  0 [cpu] CPU
#
#                                                                      out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong 
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)         
     1048576        262144     float     sum      -1  1042.11    1.01    1.01       0  1020.58    1.03    1.03       0
  2147483648     536870912     float     sum      -1 1790000.12    1.20    1.20       0 1800000.33    1.19    1.19       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 1.1075 
#
# Collective test concluded: all_reduce_cpu
"""  # noqa: W291, E501 (as the program has printed it)


def report(rows: list[dict[str, object]] | None = None, **more: object) -> dict[str, object]:
    """A JSON report as nccl-tests writes it, with secrets in its environment."""
    document: dict[str, object] = {
        "version": 3,
        "start_time": "2026-11-23 08:00:00",
        "args": ["./all_reduce_perf", "-J", "out.json"],
        "env": ["HOME=/home/ubuntu", "HF_TOKEN=hf_PLANTED", "AWS_SECRET_ACCESS_KEY=PLANTED/KEY"],
        "nccl_version": 22807,
        "config": {
            "nthreads": 1, "ngpus": 1, "minimum_bytes": GIB, "maximum_bytes": 2 * GIB, "step_factor": 2,
            "warmup_iters": 1, "iterations": 20, "aggregated_iterations": 1,
            "validation": 1, "graph": 0, "blocking_collectives": "false",
            "devices": [
                {"rank": r, "group": 0, "pid": 4000 + r, "hostname": f"gpu-node-{r // 8 + 1}", "device": r % 8,
                 "device_hex": f"0000:{0x1B + r % 8:02x}:00", "device_info": "NVIDIA B200"}
                for r in range(16)
            ],
        },
        "results": [result(GIB, 361.0), result(2 * GIB, 374.0)] if rows is None else rows,
        "out_of_bounds": {"count": 0, "okay": "true"},
        "average_bus_bandwidth": {"bandwidth": 689.0625, "okay": "unchecked"},
        "errors": [],
        "end_time": "2026-11-23 08:01:00",
    }  # fmt: skip
    return {**document, **more}


def result(size: int, algbw: float) -> dict[str, object]:
    cell = {"time": size / algbw / 1e3, "alg_bw": algbw, "bus_bw": algbw * 1.875, "nwrong": 0.0}
    return {
        "size": size, "count": size // 4, "type": "float", "redop": "sum", "root": "    -1", "out_of_place": cell,
        "in_place": cell, "actual_iterations": 20, "experiment_name": "all_reduce_perf",
    }  # fmt: skip
