"""What a merge costs, and whether its result is right, measured from outside.

Nothing here imports ``merge``: the project's command is run as a process of its own and its output
is read with torch and safetensors, so that one mistake cannot hide another.
"""
