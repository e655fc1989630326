"""What users touch: functions, gens, states; and the executor that walks them against a backend."""
