# Copyright: the lambdactl contributors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""The collection's door to inventory_plugins/lambda_fleet.py. Not a link: archives and some checkouts lose links.

Ansible reads the options from the imported DOCUMENTATION; ansible-doc, which imports nothing, reads the YAML beside it.
"""

from ansible_collections.lambdactl.lambdactl.inventory_plugins.lambda_fleet import (
    DOCUMENTATION,
    EXAMPLES,
    InventoryModule,
)

__all__ = ["DOCUMENTATION", "EXAMPLES", "InventoryModule"]
