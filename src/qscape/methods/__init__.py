"""One file a method. None of them imports another."""
