"""What a merge costs, measured from outside, and how near its result is to float64.

The measured command runs as a process of its own, as a user starts it; ``verify_merge`` then judges
its result. Run the programs here with ``python -m``, from the folder above.
"""
