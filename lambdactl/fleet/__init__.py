"""Hosts of one cluster in rank order, how to reach them, and what is known of them.

Standard library and PyYAML only: the inventory plugin runs this inside any Ansible execution environment.
"""

from __future__ import annotations

from lambdactl.fleet.model import Fleet, FleetHost, Hop, Overrides, Route

__all__ = ["Fleet", "FleetHost", "Hop", "Overrides", "Route"]
