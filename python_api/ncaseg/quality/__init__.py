"""Quality without a label: a score of the ensemble, thresholds on it, and how many failures they find."""
