"""The command line: what operators type. Everything it does goes through the rooms below."""
