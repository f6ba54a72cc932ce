"""``nfq-enforcer lab``: many nodes on one host, as network namespaces."""

import typer

app = typer.Typer(help="A lab of many nodes on this host.", no_args_is_help=True)
