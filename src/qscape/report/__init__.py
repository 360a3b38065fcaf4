"""Pictures of run folders. Reads files only; never imports jax."""
