"""Pure functions on arrays, each a paper's equation: no state, no networks."""
