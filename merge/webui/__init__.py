"""The page from which a merge is planned, run and tried out, in a browser.

``page`` lays it out with Gradio, ``server`` serves it behind ``gate``. What reads or writes models
runs in child processes (``child``, ``worker``), so that the page stays small, survives whatever
happens there, and can interrupt them.
"""
