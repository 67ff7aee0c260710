"""The command `dit info`."""

from dit.commands.info.command import info, show, table

__all__ = ["info", "show", "table"]
