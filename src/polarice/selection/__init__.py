"""What is chosen of a table, and why: rules over rows and classes, as functions of arrays; no files."""
