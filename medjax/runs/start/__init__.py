"""How a run starts: heads by prevalence, and the continuation of a finished run."""
