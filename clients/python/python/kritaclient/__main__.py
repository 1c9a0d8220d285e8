"""`python -m kritaclient`: the command."""

from ._command import main

main()
