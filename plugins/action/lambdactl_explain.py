# Copyright: lambdactl contributors. Apache-2.0.
"""The collection's door to the action lambdactl_explain. Not a link: archives and some checkouts lose links."""

from ansible_collections.lambdactl.lambdactl.playbooks.action_plugins.lambdactl_explain import ActionModule

__all__ = ["ActionModule"]
