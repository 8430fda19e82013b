"""The agent that runs inside the guest: standard library and `ballast_protocol` only.

Guests are as old as Python 3.9 and install nothing for us: the agent is one `.pyz` file.
"""

__version__ = "0.1.0"
