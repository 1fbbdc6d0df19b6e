# Copyright: lambdactl contributors. Apache-2.0.
"""The collection's door to the action lambdactl_service. Not a link: archives and some checkouts lose links."""

from ansible_collections.lambdactl.lambdactl.playbooks.action_plugins.lambdactl_service import ActionModule

__all__ = ["ActionModule"]
