"""Many runs: worker processes, studies, searches for hyperparameters, clusters."""
