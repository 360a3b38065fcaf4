"""One file per method. Methods do not import each other; they share the files that begin with `_`."""
