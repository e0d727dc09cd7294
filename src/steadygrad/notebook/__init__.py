"""What a notebook shows: cards for handles, runs, findings and calibrations, and one that is live.

Cards are plain HTML without scripts: every value is escaped, and colours follow the notebook's
own theme.
"""
