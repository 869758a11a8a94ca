"""What a run stores: records with their provenance, artefacts, the plan, and the run folder that holds them."""
