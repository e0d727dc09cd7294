"""The sound scripts are read, never run."""

collect_ignore_glob = ["sound/*"]
