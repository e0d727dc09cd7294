"""What somebody sees who trains in a notebook: run files, handles as cards, a card that is live."""
