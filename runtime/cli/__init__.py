"""The command line: which flags there are, the YAML file that sets some, and what a user typed."""

from runtime.cli.flags import ROOT, loss_files, loss_flags, read_flags
from runtime.cli.parse import parse_args, parse_or_exit

__all__ = ["ROOT", "loss_files", "loss_flags", "parse_args", "parse_or_exit", "read_flags"]
