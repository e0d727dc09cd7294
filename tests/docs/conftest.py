"""Scripts of this folder that are run, not collected."""

collect_ignore = ["run_page.py", "train.py"]
