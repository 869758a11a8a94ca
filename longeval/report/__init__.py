"""Reports: from stored records and token-level NLLs to tables, curves and intervals. Never touches a model."""
