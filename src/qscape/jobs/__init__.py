"""Many runs: worker processes, studies, hyperparameter searches, clusters."""
