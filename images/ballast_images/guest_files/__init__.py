"""What runs inside the guest that demo and tests boot: init, shell service, memory tool.

The Python files here stand on the standard library of Python 3.9 alone and import nothing of ours.
"""
