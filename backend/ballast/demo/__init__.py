"""`ballast demo`: a stock guest that shrinks and grows, measured from all sides."""
