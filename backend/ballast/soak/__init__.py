"""`ballast soak`: a stock guest that verifies its memory while everything around it goes wrong."""
