"""The jobs, each the same sentence: open a base, add deltas to it, pour it into a layout."""
