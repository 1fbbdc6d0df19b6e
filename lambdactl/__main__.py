"""`python -m lambdactl`."""

from lambdactl.cli import main

main()
