"""The daemon that is the balloon, and the command line that operates it."""
