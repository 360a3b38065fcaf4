"""On-policy agents: REINFORCE, A2C, PPO and TRPO, as parts of one update."""
