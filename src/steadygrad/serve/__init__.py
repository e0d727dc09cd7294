"""`steadygrad serve`: one live page over the run files of a folder, in a browser.

Read-only: run files are opened as everywhere else, and nothing that the page can ask for
writes. What comes from a run file is text to the page, whatever it contains.
"""
