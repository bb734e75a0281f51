"""What answers requests: bundles, versions, predictions. Neither torch nor Ray."""
