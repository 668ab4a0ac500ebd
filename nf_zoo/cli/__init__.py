"""The command `nf-zoo`."""
