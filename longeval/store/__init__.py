"""What a run leaves: records, artefacts, the run folder, where they came from."""
