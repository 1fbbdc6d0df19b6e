"""The runner: what executes and supervises one rank of a run on a node.

Shipped to nodes as one zipapp (see ``lambdactl.content.runner_zipapp``), standard library only, Python >= 3.8, and
quick to start: no asyncio, and every verb imports only what it needs.
"""
