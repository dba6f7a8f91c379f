"""What launch.py's commands do, with their messages and exit codes."""
