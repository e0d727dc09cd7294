"""Scripts of this folder that are run, not collected."""

collect_ignore = ["command.py", "forking.py", "run_page.py", "train.py"]
