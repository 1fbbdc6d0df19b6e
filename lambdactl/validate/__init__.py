"""Proving a fleet: what its hardware should give, the steps that measure it, and the name of what is slow.

- `hardware`: the verdict's `Hardware` from what the nodes said about themselves;
- `watch`: the verdict, or the cause of the failure, from the log of any run while it passes by;
- `blame`, `tournament`, `simulate`: which pairs to measure, and whom the results point at (pure, no input or output);
- `steps`, `execute`, `flow`: the plan of a validation, one step as an ordinary run, and all of them in order;
- `record`, `history`: what is kept, and how it compares with the fleet's own past.
"""
