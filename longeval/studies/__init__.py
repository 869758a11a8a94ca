"""One folder for each kind of experiment."""
