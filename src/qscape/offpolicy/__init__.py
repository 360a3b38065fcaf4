"""The off-policy trunk: its sockets, its plain defaults, its state."""
