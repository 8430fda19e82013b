"""The guest's RAM: where it is, how it goes back to the host, how much of it is really here."""
