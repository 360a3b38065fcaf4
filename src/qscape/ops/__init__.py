"""Pure functions on arrays, most of them one equation of a paper. They hold no state and know no networks."""
