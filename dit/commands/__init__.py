"""The commands: a file or folder each, with the name that is typed."""
