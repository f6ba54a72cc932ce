"""``python -m nfq_enforcer.cli``: the program ``nfq-enforcer``, also where it is not on the PATH."""

from nfq_enforcer.cli.entry import main

main()
