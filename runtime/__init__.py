"""The co-located serving engine: scheduler, memory, models, sampling. Importing this package loads no torch."""
