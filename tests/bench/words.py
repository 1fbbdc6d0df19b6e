"""The words around the tables of docs/benchmarks.md, by section."""

from __future__ import annotations

import textwrap


def paragraph(text: str) -> str:
    """One paragraph as the page has it, wrapped at 120 columns."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False))


NOOP = """`lambdactl apply -f fleet` from a fresh process with new connections, until it has said that there is
nothing to change. On the sandbox the baseline is `ansible-playbook playbooks/provision.yml -e
lambdactl_force=true`: the same roles on the same converged nodes, as ansible-core runs them. The nodes of the
bed are folders of one machine on which no role can run; there the baseline is a playbook with as many `command:
/bin/true` as the roles run modules on a converged node (counted {tasks_source}: {tasks}), which is less work
than the roles do, and ours is the same look at manifests that are in place. Ansible's connections to the nodes
are open already, ours are not. Where the baseline is missing, one sample of it would take many minutes."""

LAUNCH = """`lambdactl apply -f task`: look at all nodes, plan, reserve, start through ansible-runner, follow
rank 0. Seconds from the start of the program to the moment at which the command ran on the last node, by that
node's clock. The baselines run the same command and do nothing else: no plan, no reservation, no supervision,
no environment for MPI."""

GROWTH = """From 8 to 32 nodes of the bed. Each login, each start of Python and all that the nodes do takes its time
from the same cores, which is not so where nodes are machines; so three more figures, none of which is the goal's: the
growth if the 24 nodes that are more did nothing but log in and run one command (the asyncssh floor's own seconds added
to those of 8 nodes), the same with a start of Python that does nothing, and the growth of the seconds less the nodes'
CPU until then divided among the cores (about what is left where every node has cores of its own, if all of that work
was in the way; it flatters)."""

STOP = """`stop_criteria: master-done`. From the last command of rank 0 to the end of the last worker, by the
nodes' own clocks (one machine, so one clock). On the bed the coordinator reaches its peers without ssh, on the
sandbox with. The nodes do this among themselves, so the delay line in front of the jump host makes no
difference."""

LOGS = """`lambdactl logs RUN --all --log-dir DIR` of a finished run, 32 MiB of 100-byte lines a rank, to a
pipe; the copy of every rank is compared with what was written. The rates are between the first and the last
byte; the seconds are the whole program. The baseline reads the same bytes with asyncssh and `async for line`,
and keeps no copy."""

DELAY = """Eight ranks write a line every 10 ms; from the write on the node to the read from `lambdactl apply
--all`'s standard output. Lines from before the logs were followed, and of the second after, are left out."""

INVENTORY = """`ansible-inventory --list`. The goal compares with Ansible's YAML plugin on a file that says the
same of each host (as `ansible-inventory --list --yaml` writes it). The other two files say less of each host:
what is common to all on the group, and nothing but names. They do not reach every host through a jump host with
its own key, but they show the price of saying it for each host, which AWX needs, because it keeps nothing but
host variables."""

HELP = "`lambdactl --help`, and `python3 -c pass` beside it."

REACH = "One command on every node at once (MaxStartups 10:30:100, MaxSessions 10). Lost nodes by run."

MEANING = (
    """Each figure is the median of the runs in the last column. A variant is not run again once its runs have taken
    {budget seconds} s together, which is why slow baselines have fewer.""",
    """CPU and memory are the controller's, counted by {counted by}. Connections that stay open between runs are in
    them. Memory is anonymous memory, looked at every 20 ms.""",
    """The bed is one sshd that answers on many loopback addresses behind a second one with stock limits, the jump
    host. All "nodes" share this machine's cores with the controller. So from about 32 nodes on, seconds are an
    upper bound for all variants, and they flatter whatever does little on the nodes, ours included; on real nodes
    Ansible's modules would run beside each other. The nodes' CPU, which the tables of the bed show, divided by the
    number of cores is about the time that one would not wait for on real nodes; the controller's CPU is what carries
    over to a real cluster as it is.""",
    """The sandbox is Docker containers with systemd on this machine: the real roles, the real runner, the same
    shared cores.""",
    "The delay line adds {delay line} in front of the jump host, without loss and without a limit of bandwidth.",
    """Nothing here says anything about GPUs, InfiniBand, networks that lose packets, or how long real machines take to
    log in.""",
)
