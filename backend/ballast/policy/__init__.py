"""What a guest is asked for, and when: pure decisions, with the time as an argument.

`governor.Governor` is the only one to decide what size the guest is asked for. It knows no socket,
no event loop and no clock, so a whole resize, with its time-outs, is a few calls in a test.
"""
