"""The jobs, each the same sentence: open a base, add deltas to it, write it in a layout."""
