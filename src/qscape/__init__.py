"""qscape: reinforcement learning that learns, shapes and searches the action-value landscape."""
