"""The command `store`."""

from __future__ import annotations

import click

from scale_ray.cli.options import Caller, command
from scale_ray.cli.submission import LOCATION


@click.command()
@click.argument("store", type=LOCATION, metavar="DIR")
@click.option("--verify", is_flag=True, help="Read every shard, with its checksums.")
@click.option("--compact", is_flag=True, help="Merge small shards; nothing else may write to the store meanwhile.")
@command()
def store(caller: Caller, store: str, verify: bool, compact: bool) -> int:
    """Show what the feature store DIR holds, and which videos failed."""
    from scale_ray.stages.store import store as describe_store

    result = describe_store(store, verify_shards=verify, compact_shards=compact, console=caller.console)
    caller.print_result(result)
    return 1 if result.errors else 0
