"""Which address of each node the other nodes are to use.

A host's own ``internal_ip`` counts first, then the fleet's ``network``, then the subnet that the hosts have in common.
dstack takes the first address that each host reports, which need not be one that the others can reach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network

from lambdactl.fleet.facts import NodeFacts
from lambdactl.fleet.model import Fleet, FleetHost

_VIRTUAL = re.compile(
    r"lo|docker|br-|virbr|lxc|lxdbr|veth|vnet|cni|flannel|cali|cilium|kube|nodelocaldns|podman|tun|tap|wg|tailscale|zt"
)
"""Names of interfaces that exist inside of one machine only, or lead to an overlay."""

_IPOIB = re.compile(r"ib\w*\d")

_Interface = IPv4Interface | IPv6Interface
_Network = IPv4Network | IPv6Network


def internal_ips(fleet: Fleet, facts: Mapping[str, NodeFacts]) -> tuple[dict[str, str], dict[str, str]]:
    """The address of each host in the cluster's own network.

    Args:
        facts: by host name; hosts may be missing (not reached).

    Returns:
        ``{host: address}`` and ``{host: why it has none}``; every host is in one of the two.
    """
    if fleet.network is not None:
        # dstack accepts host bits in the file and then fails on them; here 10.0.0.5/24 means 10.0.0.0/24.
        network: _Network | None = ip_network(fleet.network, strict=False)
    else:
        network = _common_network([(host, facts[host.name]) for host in fleet.hosts if host.name in facts])
    ips: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for host in fleet.hosts:
        address, reason = _internal_ip(host, facts.get(host.name), network, named=fleet.network is not None)
        if address is not None:
            ips[host.name] = address
        else:
            reasons[host.name] = reason
    return ips, reasons


def common_cidr(ips: Mapping[str, str], facts: Mapping[str, NodeFacts]) -> str | None:
    """The smallest subnet of the hosts' own that holds all of ``ips``, for MPI's ``btl_tcp_if_include``, or None."""
    addresses = [ip_address(ip) for ip in ips.values()]
    own = {
        interface.network
        for name, ip in ips.items()
        for _, interface in (_interfaces(facts[name]) if name in facts else ())
        if str(interface.ip) == ip
    }
    holding = [network for network in own if all(address in network for address in addresses)]
    return str(max(holding, key=lambda network: network.prefixlen)) if holding else None


def _internal_ip(
    host: FleetHost, facts: NodeFacts | None, network: _Network | None, *, named: bool
) -> tuple[str | None, str]:
    """The host's address, or None and why there is none; ``named`` when the user gave the network."""
    if host.internal_ip is not None:
        if facts is not None and host.internal_ip not in {address.address for address in facts.addresses}:
            return None, f"internal_ip {host.internal_ip} is on none of its interfaces ({_shown(facts)})"
        return host.internal_ip, ""
    if facts is None:
        return None, "its addresses are not known, because it was not reached"
    candidates: Sequence[tuple[str, _Interface]] = _interfaces(facts) if named else _candidates(facts)
    for _, interface in candidates:
        if network is not None and interface.ip in network:
            return str(interface.ip), ""
    if named:
        return None, f"has no address in the network {network} ({_shown(facts)})"
    if not candidates:
        return None, f"has no IPv4 address that other machines could reach ({_shown(facts)})"
    return None, f"shares no subnet with the other hosts ({_shown(facts)}); set 'network' or 'internal_ip'"


def _common_network(known: Sequence[tuple[FleetHost, NodeFacts]]) -> IPv4Network | None:
    """The subnet that most hosts have an address of their own in; None when no two hosts share one.

    Among several: private ones before public ones, then the one through which SSH reaches the hosts (it is known to be
    routed), Ethernet before IP over InfiniBand, then the one whose interfaces come first, as primary interfaces do.
    """
    ranked: dict[IPv4Network, tuple[int, ...]] = {}
    for network in {interface.network for _, facts in known for _, interface in _candidates(facts)}:
        members = [
            next(((place, *item) for place, item in enumerate(_candidates(facts)) if item[1].ip in network), None)
            for _, facts in known
        ]
        found = [member for member in members if member is not None]
        if len({interface.ip for _, _, interface in found}) < len(found):
            continue  # the same address on several hosts: a bridge inside of each of them
        if len(found) < 2 <= len(known):
            continue
        ranked[network] = (
            len(found),
            network.is_private,
            sum(_is_address_in(host.route.target.hostname, network) for host, _ in known),
            -sum(_IPOIB.match(name) is not None for _, name, _ in found),
            -sum(place for place, _, _ in found),
            network.prefixlen,
        )
    return max(ranked, key=lambda network: (ranked[network], str(network)), default=None)


def _candidates(facts: NodeFacts) -> list[tuple[str, IPv4Interface]]:
    """The IPv4 addresses that another machine could use, in the order of the interfaces.

    IPv6 counts only where the file names it: MPI and NCCL are set up for IPv4 nearly everywhere.
    """
    return [
        (name, interface)
        for name, interface in _interfaces(facts)
        if isinstance(interface, IPv4Interface)
        and not (_VIRTUAL.match(name) or interface.ip.is_loopback or interface.ip.is_link_local)
    ]


def _interfaces(facts: NodeFacts) -> list[tuple[str, _Interface]]:
    found: list[tuple[str, _Interface]] = []
    for address in facts.addresses:
        try:
            found.append((address.interface, ip_interface(f"{address.address}/{address.prefix}")))
        except ValueError:
            continue  # not an address: a node's answer is not to be trusted
    return found


def _is_address_in(hostname: str, network: IPv4Network) -> bool:
    try:
        return ip_address(hostname) in network
    except ValueError:
        return False


def _shown(facts: NodeFacts) -> str:
    shown = [f"{name} {interface}" for name, interface in _interfaces(facts) if not interface.ip.is_loopback]
    return "it has " + (", ".join(shown[:4]) or "none")
