"""The `nun` command."""
