"""What a guest is asked for, and when: pure decisions, with the time as an argument."""
