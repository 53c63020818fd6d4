"""A study: resolve, plan, run every arm, evaluate, write results."""
