"""``python -m nfq_enforcer.cli``: the program, where it is not on the PATH."""

from nfq_enforcer.cli.main import main

main()
