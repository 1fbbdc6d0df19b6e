"""What `make bench` measures: lambdactl against the usual tools, on the same nodes, in the same run."""
