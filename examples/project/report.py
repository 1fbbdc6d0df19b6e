"""Writes one line about this node into the folder that it is given, and prints it."""

import configparser
import os
import pathlib
import sys

settings = configparser.ConfigParser()
settings.read(sys.argv[1])
line = (
    f"{settings['project']['greeting']} from rank {os.environ['DSTACK_NODE_RANK']} of {os.environ['DSTACK_NODES_NUM']}"
)
pathlib.Path(sys.argv[2], "report.txt").write_text(line + "\n")
print(line)
