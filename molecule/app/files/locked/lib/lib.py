"""A package that lies beside the app's own code."""
