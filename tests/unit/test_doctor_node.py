"""Evidence: what nodes' programs and files say, and one whole examination by a real runner with fakes on its PATH."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.doctor import checks
from lambdactl.doctor.examine import examine_one
from lambdactl.node import doctor_deep, doctor_fabric, doctor_gpu, doctor_kernel, doctor_tools
from tests.unit.node_bed import Bed

FAKES = Path(__file__).resolve().parents[1] / "fakes"


def fake(name: str, *argv: str, **environment: str) -> str:
    done = subprocess.run([FAKES / name, *argv], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True)
    return done.stdout.decode()


# nvidia-smi

OLD_XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v11.dtd">
<nvidia_smi_log>
  <gpu id="00000000:07:00.0">
    <product_name>NVIDIA A100-SXM4-40GB</product_name>
    <vbios_version>Unknown Error</vbios_version>
    <clocks_throttle_reasons>
      <clocks_throttle_reason_hw_slowdown>Active</clocks_throttle_reason_hw_slowdown>
      <clocks_throttle_reason_sw_power_cap>Not Active</clocks_throttle_reason_sw_power_cap>
    </clocks_throttle_reasons>
    <ecc_errors><volatile><sram_uncorrectable>1</sram_uncorrectable><dram_uncorrectable>N/A</dram_uncorrectable></volatile></ecc_errors>
    <remapped_rows>N/A</remapped_rows>
    <retired_pages><pending_blacklist>Yes</pending_blacklist></retired_pages>
    <temperature><gpu_temp>ERR!</gpu_temp><gpu_temp_slow_threshold>89 C</gpu_temp_slow_threshold></temperature>
    <fabric><state>N/A</state></fabric>
    <processes><process_info><pid>4711</pid><process_name>/usr/bin/python3</process_name></process_info></processes>
  </gpu>
</nvidia_smi_log>
"""


def test_an_older_drivers_names() -> None:
    (gpu,) = doctor_gpu.parse_query("warning: something\n" + OLD_XML)
    assert gpu["throttle"] == ["hw_slowdown"]
    assert gpu["ecc_errors"] == {
        "sram_correctable": None, "sram_uncorrectable": 1, "dram_correctable": None, "dram_uncorrectable": None,
    }  # fmt: skip
    assert gpu["remapped"] == {"correctable": None, "uncorrectable": None, "pending": None, "failure": None}
    assert (gpu["retired_pending"], gpu["temperature"], gpu["temperature_slowdown"]) == ("Yes", None, 89.0)
    assert gpu["unreadable"] == ["gpu_temp", "vbios_version"]
    assert gpu["fabric"] == {"state": None, "status": None}
    assert gpu["processes"] == [{"pid": 4711, "name": "/usr/bin/python3"}]


@pytest.mark.parametrize("text", ["", "<nvidia_smi_log", "<nvidia_smi_log></x>", "No devices were found", "\x00\xff"])
def test_what_is_no_xml_has_no_gpus(text: str) -> None:
    assert doctor_gpu.parse_query(text) == []


def test_hoppers_split_counters_are_added_up() -> None:
    gpus = doctor_gpu.parse_query(fake("nvidia-smi", "-q", "-x", FAKE_GPU_COUNT="2", FAKE_GPU_UNCORRECTABLE="3"))
    assert [gpu["ecc_errors"]["sram_uncorrectable"] for gpu in gpus] == [3, 0]


def test_nvlinks() -> None:
    status = "GPU 0: NVIDIA H100 (UUID: GPU-x)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\nGPU 1: NVIDIA H100\n"
    errors = (
        "GPU 0: NVIDIA H100\n\t Link 0: Replay Errors: 2\n\t Link 0: CRC Errors: 1\nGPU 7: x\n\t Link 0: CRC Errors: 5"
    )
    assert doctor_gpu.parse_nvlink(status, errors) == [
        {"gpu": 0, "links": [26.562, None], "errors": 3},
        {"gpu": 1, "links": [], "errors": 0},
        {"gpu": 7, "links": [], "errors": 5},
    ]
    assert doctor_gpu.parse_nvlink("NVML: Unable to retrieve NVLink information as all links are inActive", "") == []


# The kernel's log


def test_lines_of_the_kernel() -> None:
    lines = [
        (10.0, "NVRM: Xid (PCI:0000:4b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        (20.0, "NVRM: Xid (PCI:0000:4b:00): 79, pid=1, GPU has fallen off the bus."),
        (30.0, "nvidia-nvswitch0: SXid (PCI:0000:c4:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error"),
        (40.0, "mlx5_core 0000:18:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x8 link"),
        (50.0, "INFO: task nvidia-smi:4711 blocked for more than 120 seconds."),
        (60.0, "Out of memory: Killed process 4711 (python3) total-vm:1kB"),
        (70.0, "mce: [Hardware Error]: Machine check events logged"),
        (80.0, "blk_update_request: I/O error, dev nvme0n1, sector 1"),
        (90.0, "I/O error, dev loop0, sector 1"),
        (95.0, "usb 1-1: new device"),
    ]
    found = doctor_kernel.collect(lines, 100.0)
    assert [(event["code"], event["pci"], event["age"], event["count"]) for event in found["xid"]] == [
        (79, "0000:4b:00", 80.0, 2)
    ]
    assert [event["code"] for event in found["sxid"]] == [12028]
    counts = {kind: len(events) for kind, events in found["lines"].items()}
    assert counts == {"pcie-limited": 1, "hardware": 2, "hung": 1, "oom": 1, "link-down": 0}


def test_a_storm_of_one_xid_does_not_hide_another() -> None:
    storm = [(float(n), "NVRM: Xid (PCI:0000:4b:00): 31, pid=1") for n in range(5000)]
    found = doctor_kernel.collect([(0.5, "NVRM: Xid (PCI:0000:19:00): 48, DBE"), *storm], 5000.0)
    assert {event["code"] for event in found["xid"]} == {31, 48}
    assert len(json.dumps(found)) < 2000


# Fabric and tools


@pytest.mark.parametrize(
    ("control", "expected"), [(0x0000, 0x0000), (0x001D, 0x001D), (None, None)], ids=["off", "on", "without"]
)
def test_the_acs_control_register(control: int | None, expected: int | None) -> None:
    config = bytearray(4096)
    config[0x100:0x104] = (0x0001 | (0x148 << 20)).to_bytes(4, "little")  # AER first, then ACS at 0x148
    config[0x148:0x14C] = (0x000D if control is not None else 0x0003).to_bytes(4, "little")
    config[0x14E:0x150] = (control or 0).to_bytes(2, "little")
    assert doctor_fabric.acs_control(bytes(config)) == expected
    assert doctor_fabric.acs_control(bytes(config[:64])) is None  # without root, the kernel shows only the head


def test_a_loop_of_capabilities_ends() -> None:
    config = bytearray(4096)
    config[0x100:0x104] = (0x0001 | (0x100 << 20)).to_bytes(4, "little")
    assert doctor_fabric.acs_control(bytes(config)) is None


def test_tools() -> None:
    ports = doctor_tools.parse_ibstat(fake("ibstat", FAKE_IB_PORTS="2", FAKE_IB_DOWN="1"))
    assert ports == [
        {"device": "mlx5_1", "port": 1, "state": "Down", "physical_state": "Polling", "rate": 400, "base_lid": 17,
         "link_layer": "InfiniBand"},
        {"device": "mlx5_2", "port": 1, "state": "Active", "physical_state": "LinkUp", "rate": 400, "base_lid": 18,
         "link_layer": "InfiniBand"},
    ]  # fmt: skip
    assert doctor_tools.parse_discovery(fake("dcgmi", "discovery", "-l")) == 8
    assert doctor_tools.parse_discovery("Error: unable to establish a connection") is None
    units = "Id=chrony.service\nLoadState=loaded\nActiveState=active\n\nId=ntp.service\nLoadState=not-found\n"
    assert doctor_tools.parse_units(units) == {"chrony": "active"}
    assert doctor_deep.parse_bandwidth(fake("ib_write_bw", "-d", "mlx5_1", "127.0.0.1"), 0) == 381.75
    assert doctor_deep.parse_bandwidth("Couldn't connect", 1) is None
    assert doctor_deep.parse_diag(fake("dcgmi", "diag", "-r", "1", "-j")) == []
    assert doctor_deep.parse_diag(fake("dcgmi", "diag", FAKE_DCGM_FAIL="PCIe")) == ["PCIe"]
    assert doctor_deep.parse_diag("no JSON") == []


# One examination


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    import sys

    bed = Bed(tmp_path, sys.executable, 1)
    yield bed
    bed.close()


def sysfs(folder: Path) -> Path:
    """A 1-Click Cluster's devices: mlx5_0 is Ethernet, mlx5_1 and mlx5_2 InfiniBand, mlx5_2's link is narrow."""
    for number, layer in enumerate(("Ethernet", "InfiniBand", "InfiniBand")):
        device = folder / "bus" / "pci" / "devices" / f"0000:1{number}:00.0"
        lanes = "8" if number == 2 else "16"
        values = {"vendor": "0x15b3", "class": "0x020700", "numa_node": "0", "current_link_width": lanes}
        values |= {"max_link_width": "16", "current_link_speed": "32.0 GT/s PCIe", "max_link_speed": "32.0 GT/s PCIe"}
        port = folder / "class" / "infiniband" / f"mlx5_{number}" / "ports" / "1"
        (port / "counters").mkdir(parents=True)
        device.mkdir(parents=True)
        (port.parents[1] / "device").symlink_to(device)
        (port.parents[1] / "fw_ver").write_text("28.39.1002\n")
        (port.parents[1] / "board_id").write_text("MT_0000000838\n")
        (port / "counters" / "symbol_error").write_text("0\n")
        for name, value in values.items():
            (device / name).write_text(value + "\n")
        values = {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "400 Gb/sec (4X NDR)", "lid": "0x11"}
        for name, value in {**values, "link_layer": layer}.items():
            (port / name).write_text(value + "\n")
    return folder


def examined(bed: Bed, tmp_path: Path, **environment: str) -> dict[str, Any]:
    node = bed.nodes[0]
    node.env |= {"PATH": f"{FAKES}:{node.env['PATH']}", "LAMBDACTL_SYSFS": str(sysfs(tmp_path / "sys")), **environment}
    evidence: dict[str, Any] = node.call("examine")
    return evidence


def finding(evidence: dict[str, Any], name: str) -> tuple[str, str]:
    found = examine_one(checks()[name], "a", evidence)
    return found.status.value, found.value


def test_a_node_with_fakes(bed: Bed, tmp_path: Path) -> None:
    evidence = examined(bed, tmp_path, FAKE_IB_PORTS="2", FAKE_GPU_UNCORRECTABLE="2")
    assert evidence["received_at"] <= evidence["answered_at"]
    assert [port["device"] for port in evidence["ib"]] == ["mlx5_0", "mlx5_1", "mlx5_2"]
    assert finding(evidence, "nvidia-smi") == ("pass", "answers, 8 GPUs")
    assert finding(evidence, "ecc-uncorrectable") == ("fail", "GPU 0 (00000000:10:00.0) 2 SRAM")
    assert finding(evidence, "nvlink") == ("pass", "18 links a GPU at 53.125 GB/s")
    assert finding(evidence, "ib-ports") == ("pass", "2 ports ACTIVE/LinkUp")
    assert finding(evidence, "nic-pcie") == ("fail", "mlx5_2 has 8 of 16 lanes")
    assert finding(evidence, "ibstat") == ("pass", "2 Active/LinkUp")
    assert finding(evidence, "verbs") == ("fail", "mlx5_0 cannot be opened")
    assert finding(evidence, "dcgm") == ("pass", "DCGM sees 8 GPUs")
    assert finding(evidence, "hostname")[0] in ("pass", "warn")
    assert finding(evidence, "ib-loopback") == ("skip", "only with --deep")


def test_a_driver_that_hangs_is_a_finding_and_hides_nothing(bed: Bed, tmp_path: Path) -> None:
    evidence = examined(bed, tmp_path, FAKE_GPU_HANG="60", LAMBDACTL_PROBE_TIMEOUT="1")
    evidence["pci"]["gpus"] = 8  # the bus still has them
    assert finding(evidence, "nvidia-smi") == ("fail", "hangs: it gave no answer within its time limit")
    assert finding(evidence, "ib-ports")[0] == "pass"
    assert finding(evidence, "ecc-mode") == ("skip", "nvidia-smi describes no GPU")


def test_the_deep_tests_only_run_on_request(bed: Bed, tmp_path: Path) -> None:
    assert examined(bed, tmp_path)["deep"] is None
    evidence = bed.nodes[0].call("examine", deep=True)
    assert finding(evidence, "ib-loopback") == ("pass", "2 devices, slowest 381.75 Gb/s")
    assert finding(evidence, "dcgm-diag") == ("pass", "passed")
